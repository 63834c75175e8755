"""Reading a message from a person: line editing, history, several lines, completion of the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from .history import open_history
from .slash import COMMANDS, SETTABLE

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether `text` begins with three quotes and no line has closed them yet."""
    return text.startswith(QUOTES) and not (len(text.rstrip()) >= 6 and text.rstrip().endswith(QUOTES))


def unquote(text: str) -> str:
    """What stands between the quotes, without the line breaks next to them."""
    return text.rstrip()[3:-3].removeprefix("\n").removesuffix("\n")


class Editor:
    """Reads one message at a time. `trouble` is a line to say where the history can't be kept, else None."""

    def __init__(self) -> None:
        history, self.trouble = open_history()
        # Where the answers go to a file, the prompt stays visible.
        output = None if sys.stdout.isatty() else create_output(always_prefer_tty=True)
        self._prompt: PromptSession[str] = PromptSession(
            [("class:prompt", ">>> ")],
            multiline=True,
            prompt_continuation=[("class:prompt", "... ")],
            key_bindings=_keys(),
            history=history,
            completer=_Commands(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            style=Style.from_dict({"prompt": "bold"}),
            enable_suspend=True,
            output=output,
        )

    def read(self) -> str:
        """The message as typed. KeyboardInterrupt and EOFError are Ctrl-C, and Ctrl-D on an empty line."""
        return self._prompt.prompt()

    @property
    def abandoned(self) -> str:
        """What stood in the line when Ctrl-C was pressed."""
        return self._prompt.default_buffer.text


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Commands(Completer):
    """Completes the names of commands, and of settings behind /set."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/set "):
            word, names = text[5:], SETTABLE
        elif text.startswith("/"):
            word, names = text[1:], list(COMMANDS)
        else:
            return
        yield from (Completion(name, -len(word)) for name in names if name.startswith(word))
