"""Layers that see a window, decoded by kernels: their cache against mlx-lm's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import relative_error
from decode_runs import TOLERANCE, Action, checkpoint, error, fused, rounding, run, tokens
from mlx_lm.models import cache as stock
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.engine.decode import DecodeStep
from flashnorm_mlx.kernels.attend import TAIL
from flashnorm_mlx.rotating import RotatingKVCache

FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2},
    "llama": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that is full after every tail or two."""
    monkeypatch.setattr(RotatingKVCache, "SLACK", 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_steps_behind_a_prompt(family: str, tmp_path: Path, device: str) -> None:
    """The buffer is full several times, and prompts come in between."""
    path = checkpoint(tmp_path / "m", family, **FAMILIES[family])
    plan: list[Action] = [("prompt", 50), *[("step", 1)] * 75, ("prompt", 9), *[("step", 1)] * 40]
    model = fused(path)
    assert error(run(model, plan), run(load_stock(path)[0], plan)) <= rounding(path, plan, device)
    assert [type(c) for c in model.make_cache()] == [RotatingKVCache, KVCache]


def stepped(model: Any, cache: list, ids: mx.array) -> list[mx.array]:
    return [model(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])]


def test_mlx_lm_sees_its_own_cache(tmp_path: Path, device: str) -> None:
    """Saved and loaded, copied, in a batch: what stock's model goes on with is what ours goes on with."""
    path = checkpoint(tmp_path / "m", "gemma3_text", **FAMILIES["gemma3_text"])
    model, theirs = fused(path), load_stock(path)[0]
    ids = tokens(60)
    cache, plain = model.make_cache(), theirs.make_cache()
    for m, c in ((model, cache), (theirs, plain)):
        m(ids[:, :9], cache=c)
        stepped(m, c, ids[:, 9:50])
    want = theirs(ids[:, 50:55], cache=copy.deepcopy(plain))
    assert cache[0].buffer is not None and cache[0].nbytes > 0 and not cache[0].empty()
    stock.save_prompt_cache(str(tmp_path / "c.safetensors"), copy.deepcopy(cache))
    loaded = stock.load_prompt_cache(str(tmp_path / "c.safetensors"))
    assert type(loaded[0]) is stock.RotatingKVCache and loaded[0].keys.shape[2] == 6
    for m, c in ((theirs, loaded), (model, copy.deepcopy(cache)), (theirs, copy.deepcopy(cache))):
        assert relative_error(m(ids[:, 50:55], cache=c), want) <= TOLERANCE
    merged = [type(c).merge([one, two]) for c, one, two in zip(cache, cache, copy.deepcopy(cache), strict=True)]
    both = mx.concatenate([ids, ids])[:, 50:51]
    assert relative_error(model(both, cache=merged)[:1], want[:, :1]) <= TOLERANCE


def test_stock_caches_become_ours(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = DecodeStep.__call__
    path = checkpoint(tmp_path / "m", "llama", **FAMILIES["llama"])
    model, theirs = fused(path), load_stock(path)[0]
    monkeypatch.setattr(DecodeStep, "__call__", lambda *a: made.append(1) or original(*a))
    ids = tokens(60)
    for others in ([stock.RotatingKVCache(40), stock.KVCache()], [stock.KVCache(), stock.KVCache()]):
        made.clear()
        plain = theirs.make_cache()
        theirs(ids[:, :45], cache=plain)
        model(ids[:, :45], cache=others)
        got = mx.concatenate(stepped(model, others, ids[:, 45:55]), axis=1)
        want = mx.concatenate(stepped(theirs, plain, ids[:, 45:55]), axis=1)
        assert relative_error(got, want) <= TOLERANCE
        assert len(made) == 10
    other_window = [stock.RotatingKVCache(30), stock.KVCache()]
    model(ids[:, :20], cache=other_window)
    made.clear()
    stepped(model, other_window, ids[:, 20:25])
    assert made == []


def test_trimming(tmp_path: Path, device: str) -> None:
    """As mlx-lm's: only while nothing is out of the window."""
    path = checkpoint(tmp_path / "m", "llama", **FAMILIES["llama"])
    plan: list[Action] = [("prompt", 9), *[("step", 1)] * 20, ("trim", 7), *[("step", 1)] * 30]
    assert error(run(fused(path), plan), run(load_stock(path)[0], plan)) <= TOLERANCE
    model = fused(path)
    cache = model.make_cache()
    model(tokens(9), cache=cache)
    stepped(model, cache, tokens(40))
    assert not stock.can_trim_prompt_cache(cache)


def test_control_a_window_that_loses_a_token(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "m", "gemma3_text", **FAMILIES["gemma3_text"])
    plan: list[Action] = [("prompt", 9), *[("step", 1)] * 75]
    original = RotatingKVCache.settle

    def wrong(self: RotatingKVCache) -> None:
        full = self.appended + self.waiting > self.capacity
        original(self)
        self.appended -= full  # older tokens were moved out

    monkeypatch.setattr(RotatingKVCache, "settle", wrong)
    assert error(run(fused(path), plan), run(load_stock(path)[0], plan)) > 1e-3


def test_the_buffer_grows_to_the_window() -> None:
    """By few sizes, as a cache that sees everything; then what no window reaches leaves it."""
    cache, heads, dim, window = RotatingKVCache(700), 2, 4, 700
    history: list[np.ndarray] = []
    rng, sizes = np.random.default_rng(0), []
    for i in range(1200):
        cache.make_room(1, (1, heads, dim), mx.float32)
        if cache.capacity not in sizes:
            sizes.append(cache.capacity)
        history.append(rng.normal(size=(2, 1, heads, dim)).astype(np.float32))
        tail = np.zeros((2, 1, heads, TAIL, dim), np.float32)
        waiting = np.stack(history[len(history) - 1 - cache.waiting :], axis=3)
        tail[..., : waiting.shape[3], :] = waiting
        cache.wait(mx.array(tail.ravel()), 1)
        mx.eval(cache.buffer)
        assert cache.appended + cache.waiting >= min(i + 1, window) and cache.appended <= cache.capacity
    assert sizes == [256, 512, cache.most] and cache.most < window + 64
    seen = np.stack(history, axis=3)[..., -window:, :]
    np.testing.assert_array_equal(np.array(cache.keys), seen[0])
    np.testing.assert_array_equal(np.array(cache.values), seen[1])
