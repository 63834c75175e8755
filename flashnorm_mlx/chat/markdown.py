"""Markdown while it streams in: finished blocks are printed for good, only the last one is redrawn."""

from __future__ import annotations

import re
import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")
_SECONDS_A_FRAME = 1 / 15


def finished(text: str) -> int:
    """Where the last block of `text` starts: what stands before it can't change any more.

    Blocks end at a blank line that is outside of a code fence and followed by a line that is not indented (an indented
    one may still belong to a list).
    """
    start = position = 0
    fence, blank = "", False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence and blank and not line[0].isspace():
            start = position
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        blank = not line.strip()
        position += len(line)
    return start


class MarkdownStream:
    """Takes text in pieces and shows it as markdown; use it as a context manager, so that the end is shown too.

    Of a block taller than the screen, which could not be redrawn in place, the end is shown until it is finished.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._printed = False
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> MarkdownStream:
        return self

    def write(self, piece: str) -> None:
        """Add `piece` to what is shown."""
        self._live.start()
        self._text += piece
        if end := finished(self._text):
            self._print(self._text[:end])
            self._text = self._text[end:]
        now = time.monotonic()
        if now - self._drawn >= _SECONDS_A_FRAME:
            self._drawn = now
            self._live.update(_Block(self._text, self._console.height - 2), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        self._print(self._text)

    def _print(self, block: str) -> None:
        if not block.strip():
            return
        self._live.update("")
        if self._printed:
            self._console.print()
        self._console.print(_Block(block))
        self._printed = True


class _Block:
    """A block without the blank lines around it. With a `height`, its last lines only, for Live to redraw in place."""

    def __init__(self, text: str, height: int | None = None) -> None:
        self._text, self._height = text, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # An address that can be read, not one hidden behind a text of the model's choice.
        document = Markdown(self._text, hyperlinks=False)
        lines = console.render_lines(document, options.update(height=None), pad=False)
        full = [number for number, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        lines = lines[full[0] : full[-1] + 1] if full else []
        if self._height is not None:
            lines = lines[-max(self._height, 1) :]
        for number, line in enumerate(lines):
            yield from [Segment.line(), *line] if number else line
        if self._height is None:  # Live ends the line itself
            yield Segment.line()
