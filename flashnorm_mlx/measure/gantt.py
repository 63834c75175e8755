"""A timeline of the two units as lines of text, one character for a cycle, for a part of one, or for several."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from .simulator import Timeline

#: What each kind of work is drawn with: told apart by its character where there is no colour.
GLYPHS = {"RMS(a)": ("R", "yellow"), "scale": ("s", "green"), "compute": ("█", "blue")}
IDLE = "·"
MARGIN = len("  vector unit  ")


def gantt(timelines: Sequence[Timeline], width: int) -> Text:
    """All timelines to one scale, no line longer than ``width``, with a ruler of cycles below and a legend."""
    longest = max(t.total for t in timelines)
    room = max(8, width - MARGIN)
    columns, cycles = min(4, max(1, room // longest)), -(-longest // room)
    out = Text()
    for timeline in timelines:
        waits = f", waits {timeline.stalls} more" if timeline.stalls else ""
        tail = f", {timeline.tail} after the product" if timeline.tail else ""
        out.append(timeline.order, style="bold")
        out.append(f", W {timeline.layout}: bubble {timeline.bubble}{waits}{tail}, {timeline.total} cycles in all\n")
        for unit in ("vector", "matrix"):
            out.append(f"  {unit} unit".ljust(MARGIN))
            for cycle in range(0, timeline.total, cycles):
                glyph, style = _drawn(timeline, unit, cycle, cycle + cycles)
                out.append(glyph * columns, style=style)
            out.append("\n")
    out.append(_ruler(longest, columns, cycles, room))
    legend = "  ".join(f"{glyph} {work}" for work, (glyph, _) in GLYPHS.items())
    scale = f"{columns} characters a cycle" if cycles == 1 else f"{cycles} cycles a character"
    out.append(f"{legend}  {IDLE} idle; {scale}", style="dim")
    return out


def _drawn(timeline: Timeline, unit: str, first: int, end: int) -> tuple[str, str]:
    """What a unit mostly does in the cycles ``[first, end)``."""
    shares = {IDLE: end - first}
    for span in timeline.spans:
        overlap = min(span.end, end) - max(span.start, first)
        if span.unit == unit and overlap > 0:
            shares[span.work] = shares.get(span.work, 0) + overlap
            shares[IDLE] -= overlap
    work = max(shares, key=lambda name: (shares[name], name != IDLE))
    return GLYPHS.get(work, (IDLE, "dim"))


def _ruler(longest: int, columns: int, cycles: int, room: int) -> str:
    """A line of cycle numbers, as many as stand apart from one another."""
    step = next(s for s in (4 * 2**i for i in range(40)) if s * columns // cycles >= 8 or s >= longest)
    line = ""
    for cycle in range(0, longest + 1, step):
        place = cycle * columns // cycles
        if place + len(str(cycle)) <= room:
            line = line.ljust(place) + str(cycle)
    return " " * MARGIN + line + "\n"
