"""Long prompts in plain operations."""

from __future__ import annotations

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from mlx_lm.models.cache import make_prompt_cache

from flashnorm_mlx.architectures import under_way

TOLERANCE = 5e-6


def test_a_prompt_is_handed_over_as_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks at a time; what came before is waited for where too much memory is in use, and else not."""
    config = tiny_config("llama", num_hidden_layers=5)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    handed: list[mx.array] = []
    awaited: list[mx.array] = []
    for name, seen in (("async_eval", handed), ("eval", awaited)):
        original = getattr(mx, name)
        monkeypatch.setattr(mx, name, lambda *a, seen=seen, original=original: seen.extend(a) or original(*a))
    for residuals, waits in ((-(2**30), 2), (2**30, 0)):
        monkeypatch.setattr(under_way, "RESIDUALS", residuals)
        got = model(ids, cache=make_prompt_cache(model))
        assert (len(handed), len(awaited)) == (2, waits)
        handed.clear(), awaited.clear()
        assert relative_error(got, stock(ids)) <= TOLERANCE
    model(ids)  # without a cache, as in training, nothing is computed
    one = make_prompt_cache(model)
    model(ids[:, :1], cache=one)  # nor for one token, whose sampling is built behind it
    assert not handed and not awaited


def test_within_a_transformation_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("llama")
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    monkeypatch.setattr(under_way, "RESIDUALS", -(2**30))
    compiled = mx.compile(lambda ids: model(ids, cache=make_prompt_cache(model)))
    assert relative_error(compiled(ids), stock(ids)) <= TOLERANCE
    slope = mx.grad(lambda scale: mx.sum(model(ids, make_prompt_cache(model), model.embed(ids) * scale)))
    assert mx.isfinite(slope(mx.array(1.0))).item()
