"""A clock that only work moves, and models whose work takes as long as they say."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flashnorm_mlx.measure.loop import Timer


class FakeTimer(Timer):
    """Time passes when work is waited for, and not before. Reading the clock with work under way is an error."""

    def __init__(self) -> None:
        self.now = 0.0
        #: Work that was asked for and not waited for, in seconds, oldest first.
        self.pending: list[float] = []

    def clock(self) -> float:
        assert not self.pending, f"the clock was read with {len(self.pending)} pieces of work under way"
        return self.now

    def glance(self) -> float:
        return self.now

    def launch(self, *arrays: Any) -> None:
        pass

    def wait(self, array: Any) -> None:
        """All but the newest piece is done when the value behind it is read."""
        self.now += sum(self.pending[:-1])
        self.pending = self.pending[-1:]

    def finish(self, *arrays: Any) -> None:
        self.now += sum(self.pending)
        self.pending = []


class FakeModel:
    """``model(ids, cache) -> logits``: each call takes ``seconds``, the first ``compiling`` more."""

    def __init__(self, timer: FakeTimer, seconds: float, compiling: float = 0.0, noise: list[float] | None = None):
        self.timer, self.seconds, self.compiling = timer, seconds, compiling
        self.noise = noise or [1.0]
        self.calls: list[tuple[int, ...]] = []

    def make_cache(self) -> list:
        return []

    def __call__(self, ids: mx.array, cache: list | None = None) -> mx.array:
        factor = self.noise[len(self.calls) % len(self.noise)]
        self.calls.append(ids.shape)
        self.timer.pending.append(factor * self.seconds + self.compiling)
        self.compiling = 0.0
        return mx.zeros((*ids.shape, 4))
