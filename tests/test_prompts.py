"""Long prompts in plain operations."""

from __future__ import annotations

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from mlx_lm.models.cache import make_prompt_cache

from flashnorm_mlx.architectures import base

TOLERANCE = 5e-6


def test_a_prompt_is_not_all_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are handed over as they are there, and the host waits for those before: memory for two, not for all."""
    config = tiny_config("llama", num_hidden_layers=5)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    handed: list[mx.array] = []
    original = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: handed.extend(arrays) or original(*arrays))
    assert relative_error(model(ids, cache=make_prompt_cache(model)), stock(ids)) <= TOLERANCE and not handed
    for blocks, times in ((1, 5), (2, 2), (5, 1), (6, 0)):
        handed.clear()
        monkeypatch.setattr(base, "UNDER_WAY", blocks * ids.size * config["hidden_size"] * 4)
        assert relative_error(model(ids, cache=make_prompt_cache(model)), stock(ids)) <= TOLERANCE
        assert len(handed) == times
    model(ids)  # without a cache, as in training, nothing is computed
    assert not handed


def test_within_a_transformation_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("llama")
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    monkeypatch.setattr(base, "UNDER_WAY", 1)
    compiled = mx.compile(lambda ids: model(ids, cache=make_prompt_cache(model)))
    assert relative_error(compiled(ids), stock(ids)) <= TOLERANCE
    slope = mx.grad(lambda scale: mx.sum(model(ids, make_prompt_cache(model), model.embed(ids) * scale)))
    assert mx.isfinite(slope(mx.array(1.0))).item()
