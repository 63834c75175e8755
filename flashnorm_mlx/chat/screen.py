"""What is shown: answers to standard output, everything else beside them; no text is trusted as terminal control."""

from __future__ import annotations

import os
import re
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .markdown import MarkdownStream
from .session import Progress
from .wrap import WordWrap

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """`text` without control characters but line break and tab: no text can move the cursor or change colours."""
    return _CONTROL.sub("", text)


def write(pieces: Iterable[str]) -> None:
    """Write an answer to standard output as it comes, and end its line."""
    ended = True
    try:
        for piece in pieces:
            if piece := clean(piece):
                sys.stdout.write(piece)
                sys.stdout.flush()
                ended = piece.endswith("\n")
    finally:
        if not ended:
            sys.stdout.write("\n")
            sys.stdout.flush()


class Screen:
    """A person's terminal. Where the answers go to a file, notices go to standard error instead."""

    def __init__(self) -> None:
        self._redirected = not sys.stdout.isatty()
        self._console = Console(stderr=self._redirected, highlight=False)

    def say(self, text: str, style: str = "dim") -> None:
        """One notice, in its own line."""
        self._console.print(Text(clean(text), style))

    def table(self, rows: list[tuple[str, ...]]) -> None:
        """Rows of text, in columns that wrap."""
        grid = Table.grid(padding=(0, 2))
        for _ in rows[0][1:]:
            grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for row in rows:
            grid.add_row(*(Text(clean(cell), "dim" if number else "") for number, cell in enumerate(row)))
        self._console.print(grid)

    def show(self, pieces: Iterable[str], markdown: bool) -> None:
        """An answer as it comes."""
        if markdown and not self._redirected:
            with MarkdownStream(self._console) as stream:
                for piece in pieces:
                    stream.write(clean(piece))
        elif self._redirected:
            write(pieces)
        else:
            write(self._wrapped(pieces))

    def _wrapped(self, pieces: Iterable[str]) -> Iterator[str]:
        wrap = WordWrap(self._console.width)
        try:
            for piece in pieces:
                yield wrap.feed(clean(piece))
        finally:
            yield wrap.flush()

    @contextmanager
    def typing_hidden(self) -> Iterator[None]:
        """Keep keys for the next prompt, unseen, as they were pressed: a terminal that reads lines loses Ctrl-D."""
        try:
            before = termios.tcgetattr(sys.stdin)
        except (termios.error, OSError, ValueError):  # no terminal
            yield
            return
        lines = before[3] & ~(termios.ECHO | termios.ICANON)
        hidden = [before[0] & ~termios.ICRNL, *before[1:3], lines, *before[4:6], list(before[6])]
        # Ctrl-\ would end the process and leave the terminal like this
        hidden[6][termios.VQUIT] = bytes([os.fpathconf(sys.stdin.fileno(), "PC_VDISABLE") & 255])
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, hidden)
        try:
            yield
        finally:
            with suppress(termios.error, OSError):  # it may be gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    @contextmanager
    def waiting(self) -> Iterator[Progress]:
        """A sign of life until the first text; what it yields tells how much of the prompt is read."""
        with self._console.status("", spinner="dots") as status:

            def progress(done: int, total: int) -> None:
                if done == total:
                    status.stop()
                elif done:
                    status.update(Text(f"{done} of {total} tokens read", "dim"))

            yield progress
