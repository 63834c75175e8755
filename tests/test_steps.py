"""The rows that are ready ahead of their steps are those that each step would have had on its own."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashnorm_mlx.architectures.steps import Steps
from flashnorm_mlx.kernels.attend import TAIL, Heads, default_layout, step_row
from flashnorm_mlx.layers.rope import Rotation

HEADS = Heads(6, 2, 64, scale=0.125, rotary_dims=10)
ROTATION = Rotation(64, 100.0 ** (-np.arange(5) / 5), factor=1.25)


def alone(appended: int, waiting: int, capacity: int, position: int, length: int) -> np.ndarray:
    angles = np.arange(position, position + length, dtype=np.float32)[:, None] * np.float32(ROTATION.inv_freq)
    splits = default_layout(HEADS, capacity).splits
    return step_row(appended, waiting, capacity, splits, angles, ROTATION.factor)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["step", "trim", "grow", "shift"]), st.integers(1, 8)), max_size=60))
def test_rows_are_those_of_each_step(actions: list[tuple[str, int]]) -> None:
    steps = Steps(HEADS, ROTATION)
    appended, waiting, capacity, moved = 40, 0, 256, 0
    for action, n in actions:
        if action == "trim":
            waiting = max(0, waiting - n)
        elif action == "grow":
            capacity *= 2
        elif action == "shift":  # a window that has moved on: positions run ahead of what is in the buffer
            moved += n
        else:
            if waiting + n > TAIL:
                appended, waiting = appended + waiting, 0
            position = appended + waiting + moved
            got = steps(appended, waiting, capacity, position, n)
            assert got.shape == (1, 4 + 10 * n)
            np.testing.assert_array_equal(np.array(got)[0], alone(appended, waiting, capacity, position, n))
            waiting += n


def test_rows_go_to_the_device_once_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = Steps._write
    monkeypatch.setattr(Steps, "_write", lambda self, *a: written.append(a) or original(self, *a))
    steps = Steps(HEADS, ROTATION)
    for i in range(3 * TAIL):
        steps(i // TAIL * TAIL, i % TAIL, 256, i, 1)
    assert len(written) == 3


def test_a_row_is_read_16_bytes_at_a_time() -> None:
    steps = Steps(HEADS, ROTATION)
    for i in range(3):
        row = steps(0, i, 256, i, 1)
        mx.eval(row)
        assert steps.rows.shape[1] * 4 % 16 == 0
