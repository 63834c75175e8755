"""What one launch costs a device, and how fast its memory is.

A decode kernel runs for microseconds: less than it takes the CPU to hand it over. So the device is given something long
to do first; behind that, many launches are handed over, each waiting for the one before, and run without a gap. The
same with nothing between the links of the chain, run in turn with it, is subtracted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from flashnorm_mlx.measure.arms import described
from flashnorm_mlx.measure.traffic import read_and_copy


@dataclass(frozen=True)
class Launch:
    """Microseconds of one launch on the device (the median, and half the range without the extremes), and of the CPU's.

    ``hidden``: all were handed over while the device was busy with something else. Otherwise ``device_us`` is an upper
    bound, for the device has waited for the CPU.
    """

    device_us: float
    spread_us: float
    host_us: float
    hidden: bool


class Stopwatch:
    """Times launches on the default device, with ``gigabytes`` of memory to read."""

    def __init__(self, gigabytes: float, repeat: int = 7) -> None:
        self.repeat = repeat
        self.big = mx.random.uniform(shape=(int(gigabytes * 2**30) // 4,))
        mx.eval(self.big)
        self.rounds = 1
        self.busy = self._best(lambda: (self._occupy(),))

    def bandwidth(self) -> dict[str, float]:
        """Bytes a second of a sum (read) and of a sum with a number (read and written), the fixed costs left out."""
        return read_and_copy(self.big, self._best)

    def launch(self, step: Callable[[mx.array, int], mx.array], x: mx.array, count: int) -> Launch:
        """The cost of ``step(x, i)``, from ``count`` of them in a chain; each gets an x that is the last one's work."""

        def chain(step: Callable[[mx.array, int], mx.array]) -> tuple[mx.array, mx.array]:
            occupied = self._occupy()
            y = _link(x, occupied[:1])
            for i in range(count):
                y = _link(x, step(y, i).reshape(-1)[:1])
            return occupied, y

        while True:
            self._run(chain(step))  # what has to be compiled is compiled now
            _, handing_over = self._run(chain(step))
            if handing_over < 0.7 * self.busy or self.rounds >= 64:
                break
            self.rounds = min(64, math.ceil(2 * self.rounds * handing_over / self.busy))
            self.busy = self._best(lambda: (self._occupy(),))
        found, costs = [], []
        for _ in range(self.repeat):
            found.append(self._run(chain(step)))
            empty, _ = self._run(chain(lambda y, i: y))
            costs.append(1e6 * (found[-1][0] - empty) / count)
        costs.sort()
        return Launch(
            device_us=max(0.0, statistics.median(costs)),
            spread_us=(costs[-2] - costs[1]) / 2,
            host_us=1e6 * min(host for _, host in found) / count,
            hidden=min(host for _, host in found) < self.busy,
        )

    def _occupy(self) -> mx.array:
        """Something long for the device to do, lazily."""
        y = self.big
        for _ in range(self.rounds):
            y = y + 1
        return y

    def _best(self, build: Callable[[], tuple[mx.array, ...]]) -> float:
        self._run(build())
        return min(self._run(build())[0] for _ in range(self.repeat))

    def _run(self, arrays: tuple[mx.array, ...]) -> tuple[float, float]:
        """Seconds for all of it, and for handing the last array over once the others are under way."""
        start = time.perf_counter()
        for array in arrays[:-1]:
            mx.async_eval(array)
        middle = time.perf_counter()
        mx.async_eval(arrays[-1])
        handed_over = time.perf_counter()
        mx.eval(arrays)
        return time.perf_counter() - start, handed_over - middle


def timed(watch: Stopwatch, step: Callable[[mx.array, int], mx.array], x: mx.array, count: int) -> dict[str, Any]:
    """The launches' cost as a row of a result has it, or the error."""
    try:
        found = watch.launch(step, x, count)
    except Exception as error:  # the other rows go on
        return {"error": described(error)}
    return {name: v if name == "hidden" else round(v, 3) for name, v in asdict(found).items()}


@mx.compile
def _link(x: mx.array, last: mx.array) -> mx.array:
    """``x`` as good as unchanged, and not there before ``last`` is."""
    return x + (1e-6 * last).astype(x.dtype)
