"""What the kernels need to know of each step, on the device before it is needed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..kernels.attend import TAIL, Heads, default_layout, step_row
from ..layers.rope import Rotation


class Steps:
    """The rows (:func:`~flashnorm_mlx.kernels.attend.step_row`) of one kind of layer, until its tail is full.

    They go to the device together. Handed over with its step, each would be fetched from the host's memory by the
    first kernel that reads it, while all others wait (50 to 80 µs a token on an H100).
    """

    def __init__(self, heads: Heads, rotation: Rotation) -> None:
        self.heads, self.rotation = heads, rotation
        self.rows = mx.zeros((0, 0))
        self.size, self.first = 0, 0
        self.period: tuple[int, ...] = ()

    def __call__(self, appended: int, waiting: int, capacity: int, position: int, length: int) -> mx.array:
        """The row ``[1, 4 + length·rotary_dims]`` of a step of ``length`` tokens, the first of them at ``position``."""
        period = appended, capacity, position - waiting, length  # the same until the tail is appended
        k, between = divmod(waiting - self.first, length)
        if period != self.period or between or not 0 <= k < len(self.rows):
            self.period, self.first, k = period, waiting, 0
            self._write(appended, capacity, position, length)
        return self.rows[k : k + 1, : self.size]

    def _write(self, appended: int, capacity: int, position: int, length: int) -> None:
        splits, count = default_layout(self.heads, capacity).splits, (TAIL - self.first) // length
        positions = np.arange(position, position + count * length, dtype=np.float32).reshape(count, length, 1)
        angles = positions * np.float32(self.rotation.inv_freq)
        waiting = self.first + length * np.arange(count)
        rows = step_row(appended, waiting, capacity, splits, angles, self.rotation.factor)
        self.size = rows.shape[1]
        rows = np.pad(rows, ((0, 0), (0, -self.size % 4)))  # kernels read 16 bytes at a time
        self.rows = mx.negative(mx.array(-rows))  # what an operation yields lies in the device's memory
