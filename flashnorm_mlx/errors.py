"""The one exception a user is meant to read, and other libraries' in a line."""


class FlashNormError(Exception):
    """What is wrong, where, and what to do next, in a line or two.

    Raised for everything that the user or a file can cause: a wrong path, a broken checkpoint, an option out of
    range. The command line prints its message and exits with 1; any other exception is a bug of ours.
    """


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM, SIGHUP). Whoever asks again after Ctrl-C doesn't after this."""


def first_line(error: BaseException) -> str:
    """What another library's error says first; its type's name where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
