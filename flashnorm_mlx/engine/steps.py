"""What the kernels need to know of each step, on the device before it is needed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..kernels.attend import TAIL, Heads, default_layout, step_rows
from ..layers.rope import Rotation


class Steps:
    """The steps of one kind of layer (:func:`~flashnorm_mlx.kernels.attend.step_rows`), until its tail is full.

    They go to the device together. Handed over one by one, each would be fetched from the host's memory by the first
    kernel that reads it, while all others wait (50 to 80 µs a token on an H100).
    """

    def __init__(self, heads: Heads, rotation: Rotation) -> None:
        self.heads, self.rotation = heads, rotation
        self.steps = mx.zeros((0, 0))
        self.first = 0
        self.period: tuple = ()

    def __call__(
        self, appended: int, waiting: int, capacity: int, end: int, length: int, padding: tuple[int, ...]
    ) -> mx.array:
        """Of a step of ``length`` tokens behind ``end`` others, of which ``padding`` are none in each sequence."""
        period = appended, capacity, end - waiting, length, padding  # the same until the tail is appended
        k, between = divmod(waiting - self.first, length)
        if period != self.period or between or not 0 <= k < len(self.steps):
            self.period, self.first, k = period, waiting, 0
            self._write(appended, capacity, end, length, padding)
        return self.steps[k : k + 1]

    def _write(self, appended: int, capacity: int, end: int, length: int, padding: tuple[int, ...]) -> None:
        count = (TAIL - self.first) // length
        positions = np.arange(end, end + count * length, dtype=np.float32).reshape(count, 1, length)
        positions = positions - np.float32(padding)[:, None]  # [steps, batch, length]
        steps = step_rows(
            appended,
            self.first + length * np.arange(count)[:, None],
            capacity,
            default_layout(self.heads, capacity).splits,
            positions[..., None] * np.float32(self.rotation.inv_freq),
            self.rotation.factor,
            self.heads.query_factors(positions),
            np.maximum(0, np.array(padding) - (end - self.first - appended)),  # without what has left the buffer
        ).reshape(count, -1)
        self.steps = mx.negative(mx.array(-steps))  # what an operation yields lies in the device's memory
