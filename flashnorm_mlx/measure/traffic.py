"""Bytes that a decode step reads, and the bytes a second that the memory has to give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import open_checkpoint
from ..loader import configured
from .loop import Timer
from .memory import available

#: GiB to measure with: more than any cache holds. A fast memory is done with them as soon as a kernel has started, so
#: a GPU with much of it gets more.
GIGABYTES, MANY_GIGABYTES = 0.5, 2.0
MUCH_MEMORY = 32e9
REPEAT = 5


@dataclass(frozen=True)
class Traffic:
    """Bytes that a step reads: the weights once, and for every row the positions that it attends to."""

    weights: int
    position: int

    def step(self, positions: float, batch: int) -> float:
        """One decode step of ``batch`` rows behind ``positions`` each."""
        return self.weights + batch * positions * self.position


def traffic(folder: Path, computing: mx.Dtype) -> Traffic:
    """Of a checkpoint: unquantised weights count in the dtype that they are computed in.

    Tables that a row is looked up in and idle experts (of one row) are left out.
    """
    checkpoint = open_checkpoint(folder)
    model = configured(checkpoint, {})
    tensors = model.headers(checkpoint.tensors)
    tables = model.looked_up
    weights = 0.0
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] not in tables:
            floating = tensor.dtype in ("F16", "BF16", "F32")
            size = math.prod(tensor.shape) * computing.size if floating else tensor.nbytes
            weights += size * model.read_share(name)
    return Traffic(round(weights), model.args.cache_width_of_all * computing.size)


def bandwidth(timer: Timer, gigabytes: float | None = None) -> dict[str, float]:
    """Bytes a second of the default device's memory, measured now: ``read`` and ``copy`` as :func:`read_and_copy`."""
    if gigabytes is None:
        roomy = mx.default_device() == mx.gpu and (available() or 0) > MUCH_MEMORY
        gigabytes = MANY_GIGABYTES if roomy else GIGABYTES
    big = mx.zeros(int(gigabytes * 2**30) // 4) + 1.0
    timer.finish(big)

    def best(build: Callable[[], tuple[mx.array, ...]]) -> float:
        times = []
        for _ in range(REPEAT + 1):
            start = timer.clock()
            timer.finish(*build())
            times.append(timer.clock() - start)
        return min(times[1:])

    return read_and_copy(big, best)


def read_and_copy(big: mx.array, best: Callable[[Any], float]) -> dict[str, float]:
    """Bytes a second of a sum (read) and of a sum with a number (read and written), the fixed costs left out.

    Args:
        best: seconds of what a function builds.
    """
    small = big[: big.size // 2]
    more = big.nbytes - small.nbytes
    read = best(lambda: (mx.sum(big),)) - best(lambda: (mx.sum(small),))
    copy = best(lambda: (big + 1,)) - best(lambda: (small + 1,))
    return {"read": more / max(read, 1e-9), "copy": 2 * more / max(copy, 1e-9)}
