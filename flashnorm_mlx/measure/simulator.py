"""The machine of the paper's §5, simulated: how long a norm keeps the matrix unit waiting.

A vector unit does m operations a cycle, a matrix unit m². They are given ``z = RMSNorm(a) W``, with ``a [n]`` and
``W [n, k]``, at batch 1. The paper's rules:

- 1/RMS(a) takes n/m vector cycles (the root and the division are not counted), scaling a vector of n as many;
- the product takes n·k/m² matrix cycles;
- *sequential*: the product starts when all of ``a`` is scaled;
- *interleaved*: it starts when what it reads first is scaled;
- *flashnorm*: it starts at once, on what isn't scaled; each output is scaled when it is complete and 1/RMS is known.

What the paper leaves open is assumed here:

- the matrix unit takes the next m² weights in the order of storage, in each cycle: whole rows of W one after the other
  (row-major), or whole columns (column-major). So a cycle needs the inputs of the rows that it touches, and completes
  the outputs of the columns that it ends;
- it waits as a whole while one of its inputs isn't there yet;
- the vector unit works on m neighbouring elements at a time, first those that are ready first, and what a cycle has
  made can be read in the next one. A cycle that isn't filled is a whole one.

The first of these is what makes interleaving want rows and FlashNorm columns, as the paper has it. A unit that took
tiles of m×m would give Fig. 10 the same numbers, but with either layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..errors import FlashNormError

ORDERS = ("sequential", "interleaved", "flashnorm")
LAYOUTS = ("row-major", "column-major")

#: The layout of W that the paper gives each order (of a sequential one it says nothing: there it is all the same).
PAPER = {"sequential": "row-major", "interleaved": "row-major", "flashnorm": "column-major"}

#: The longest run that is simulated, in matrix cycles.
LONGEST = 200_000


@dataclass(frozen=True)
class Span:
    """Work of one unit without a gap, in the cycles ``[start, end)``."""

    unit: str
    work: str
    start: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """What the two units did, and when."""

    order: str
    layout: str
    spans: tuple[Span, ...]

    @property
    def total(self) -> int:
        """Cycles until the last output is there."""
        return max(span.end for span in self.spans)

    @property
    def bubble(self) -> int:
        """Cycles before the matrix unit starts."""
        return self._matrix[0].start

    @property
    def stalls(self) -> int:
        """Cycles that the matrix unit waits once it has started."""
        return sum(after.start - before.end for before, after in zip(self._matrix, self._matrix[1:], strict=False))

    @property
    def tail(self) -> int:
        """Cycles after the matrix unit's last."""
        return self.total - self._matrix[-1].end

    @property
    def _matrix(self) -> list[Span]:
        return [span for span in self.spans if span.unit == "matrix"]


def simulate(n: int, k: int, m: int, order: str, layout: str) -> Timeline:
    """The norm of n inputs and their projection to k outputs, on units of width m (§5).

    Raises:
        FlashNormError: if a size isn't positive, the order or the layout isn't known, or the run would be longer than
            ``LONGEST`` matrix cycles.
    """
    _check(n, k, m, order, layout)
    norm = Span("vector", "RMS(a)", 0, ceil(n / m))
    deferred = order == "flashnorm"
    scaling = [] if deferred else [Span("vector", "scale", norm.end + i, norm.end + i + 1) for i in range(ceil(n / m))]
    matrix: list[Span] = []
    done = 0
    for batch in range(ceil(n * k / m**2)):
        first, last = batch * m**2, min((batch + 1) * m**2, n * k) - 1
        ready = 0 if deferred else scaling[-1 if order == "sequential" else _input(first, last, n, k, layout) // m].end
        start = max(done, ready)
        done = start + 1
        matrix.append(Span("matrix", "compute", start, done))
    if deferred:
        free = norm.end
        for first in range(0, k, m):
            weight = _last_weight(min(first + m, k) - 1, n, k, layout)
            start = max(free, matrix[weight // m**2].end)
            free = start + 1
            scaling.append(Span("vector", "scale", start, free))
    return Timeline(order, layout, (*_joined([norm, *scaling]), *_joined(matrix)))


def _check(n: int, k: int, m: int, order: str, layout: str) -> None:
    for name, size in (("n", n), ("k", k), ("m", m)):
        if size < 1:
            raise FlashNormError(f"{name} must be a positive integer, not {size}")
    for what, value, known in (("order", order, ORDERS), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise FlashNormError(f"{what} {value!r} is not known; choose {', '.join(known)}")
    if ceil(n * k / m**2) > LONGEST:
        raise FlashNormError(
            f"n·k/m² = {ceil(n * k / m**2):,} cycles are more than are simulated ({LONGEST:,}); give a larger m"
        )


def _input(first: int, last: int, n: int, k: int, layout: str) -> int:
    """The last input that the weights ``first`` to ``last``, in the order of storage, are multiplied with."""
    if layout == "row-major":
        return last // k
    return last % n if first // n == last // n else n - 1


def _last_weight(output: int, n: int, k: int, layout: str) -> int:
    """The place, in the order of storage, of the weight that completes an output and all before it."""
    return (n - 1) * k + output if layout == "row-major" else output * n + n - 1


def _joined(spans: list[Span]) -> list[Span]:
    """The same with neighbours of the same work as one."""
    out: list[Span] = []
    for span in spans:
        if out and (out[-1].work, out[-1].end) == (span.work, span.start):
            span = Span(span.unit, span.work, out.pop().start, span.end)
        out.append(span)
    return out
