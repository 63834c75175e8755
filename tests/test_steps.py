"""The rows that are ready ahead of their steps are those that each step would have had on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashnorm_mlx.engine.steps import Steps
from flashnorm_mlx.kernels.attend import TAIL, Heads, default_layout, step_rows
from flashnorm_mlx.layers.rope import Rotation

HEADS = Heads(6, 2, 64, scale=0.125, rotary_dims=10, growth=(0.3, 5.0))
ROTATION = Rotation(64, 100.0 ** (-np.arange(5) / 5), factor=1.25)


def alone(
    appended: int, waiting: int, capacity: int, end: int, length: int, padding: tuple[int, ...]
) -> list[np.ndarray]:
    rows = []
    for none in padding:
        positions = np.arange(end - none, end - none + length, dtype=np.float32)
        angles = positions[:, None] * np.float32(ROTATION.inv_freq)
        splits, queries = default_layout(HEADS, capacity).splits, HEADS.query_factors(positions)
        left = max(0, none - (end - waiting - appended))  # of the padding, in the buffer
        rows.append(step_rows(appended, waiting, capacity, splits, angles[None], ROTATION.factor, queries[None], left))
    return rows


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["step", "trim", "grow", "shift", "pad"]), st.integers(1, 8)), max_size=60),
    st.sampled_from([(0,), (3, 0, 40)]),
)
def test_rows_are_those_of_each_step(actions: list[tuple[str, int]], padding: tuple[int, ...]) -> None:
    steps = Steps(HEADS, ROTATION)
    appended, waiting, capacity, moved = 40, 0, 256, 0
    for action, n in actions:
        if action == "trim":
            waiting = max(0, waiting - n)
        elif action == "grow":
            capacity *= 2
        elif action == "shift":  # a window that has moved on: positions run ahead of what is in the buffer
            moved += n
        elif action == "pad":
            padding = (n, *padding[1:])
        else:
            if waiting + n > TAIL:
                appended, waiting = appended + waiting, 0
            position = appended + waiting + moved
            step = appended, waiting, capacity, position, n, padding
            got = np.array(steps(*step)).reshape(len(padding), -1)
            assert got.shape[1] % 4 == 0, "rows are read 16 bytes at a time"
            np.testing.assert_array_equal(got, np.concatenate(alone(*step)))
            waiting += n


def test_rows_go_to_the_device_once_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = Steps._write
    monkeypatch.setattr(Steps, "_write", lambda self, *a: written.append(a) or original(self, *a))
    steps = Steps(HEADS, ROTATION)
    for i in range(3 * TAIL):
        steps(i // TAIL * TAIL, i % TAIL, 256, i, 1, (0,))
    assert len(written) == 3
