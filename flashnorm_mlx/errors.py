"""The one exception a user is meant to read."""


class FlashNormError(Exception):
    """What is wrong, where, and what to do next, in a line or two.

    Raised for everything that the user or a file can cause: a wrong path, a broken checkpoint, an option out of
    range. The command line prints its message and exits with 1; any other exception is a bug of ours.
    """
