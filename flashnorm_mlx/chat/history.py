"""What was typed, kept between runs where the user's state belongs; private, and never a reason to fail."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ..paths import state_folder


def history_path() -> Path:
    """The file. RuntimeError without a home."""
    return state_folder() / "chat_history"


def open_history() -> tuple[History, str | None]:
    """The history, and a line to say where it can't be kept in a file (then it lasts as long as the chat)."""
    try:
        path = history_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.read_bytes()
    except (OSError, RuntimeError) as error:
        return InMemoryHistory(), f"What you type is not kept for the next time: {error}."
    return _QuietHistory(str(path)), None


class _QuietHistory(FileHistory):
    """A file that goes away or fills its disk costs the history, not the chat."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            yield from super().load_history_strings()
        except OSError:
            return

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string.encode("utf-8", "replace").decode("utf-8"))
        except OSError:
            return
