"""Decode steps that are broken on purpose: the comparison with stock mlx-lm must see each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from decode_runs import SHORT, TOLERANCE, Action, checkpoint, error, fused, run
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.engine import steps
from flashnorm_mlx.layers import norm
from flashnorm_mlx.layers.fused import FusedBlock, Pending, Projection


def control_error(path: Path, plan: list[Action] = SHORT) -> float:
    return error(run(fused(path), plan), run(load_stock(path)[0], plan))


def test_control_another_eps(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm.FlashNorm, "fused", lambda self: norm.Fusion(eps=0.0, gain=self.get("weight")))
    assert control_error(checkpoint(tmp_path / "m")) > 1e-4


def test_control_gains_that_are_dropped(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm.FlashNorm, "fused", lambda self: norm.Fusion(eps=self.eps))
    assert control_error(checkpoint(tmp_path / "m", bits=4)) > 1e-2


def test_control_gains_of_the_qk_norm(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FusedBlock.__init__

    def without(self: FusedBlock, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.gains = mx.ones_like(self.gains)

    monkeypatch.setattr(FusedBlock, "__init__", without)
    assert control_error(checkpoint(tmp_path / "m", "qwen3")) > 1e-2


def test_control_a_tail_that_is_not_taken_over(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KVCache.wait
    monkeypatch.setattr(KVCache, "wait", lambda self, tail, *how: original(self, self.tail, *how))
    assert control_error(checkpoint(tmp_path / "m")) > 1e-2


def test_control_a_tail_that_is_not_appended(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: KVCache) -> None:
        start, self.waiting = self.offset, 0
        self._reserve(start)

    path, plan = checkpoint(tmp_path / "m"), [("prompt", 9), *[("step", 1)] * 33]
    model, want = fused(path), run(load_stock(path)[0], plan)
    monkeypatch.setattr(KVCache, "settle", lambda self: forget(self) if self.waiting else None)
    got = run(model, plan)
    assert error(got[:-1], want[:-1]) <= TOLERANCE < 1e-3 < error(got[-1:], want[-1:])


def test_control_other_angles(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = steps.step_rows

    monkeypatch.setattr(steps, "step_rows", lambda *given: original(*given[:4], given[4] * 1.1, *given[5:]))
    assert control_error(checkpoint(tmp_path / "m")) > 1e-3


@pytest.mark.parametrize("part", ["weight", "due"])
def test_control_a_post_norm_that_is_not_done(
    part: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gain is lost, or what is due is never added."""
    if part == "weight":
        original = FusedBlock.__init__

        def without(self: FusedBlock, *parts: Any, pending: Any, **options: Any) -> None:
            if pending is not None:
                pending = Pending(norm.PostNorm(pending.norm["weight"].size, pending.norm.eps))
            original(self, *parts, pending=pending, **options)

        monkeypatch.setattr(FusedBlock, "__init__", without)
    else:
        added = Projection.added
        monkeypatch.setattr(Projection, "added", lambda self, *a, **k: added(self, *a, **k)._replace(due=None))
    assert control_error(checkpoint(tmp_path / "m", "gemma2")) > 1e-2
