"""Latent attention and experts against stock mlx-lm: every option, both forms, and decode."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from latent_checkpoints import with_tiny_residuals
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache
from test_models import TOLERANCE, ids_for, token_by_token

from flashnorm_mlx import FlashNormError
from flashnorm_mlx.architectures import deepseek_v2
from flashnorm_mlx.kernels.packed import Uncovered
from flashnorm_mlx.layers import norm, rope

FAMILIES = ("deepseek_v2", "deepseek_v3")
LITE = {"q_lora_rank": None}
YARN = deepseek_v2.TINY["rope_scaling"]
ODD = {
    "hidden_size": 83,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 37,
    "kv_lora_rank": 29,
    "qk_nope_head_dim": 13,
    "qk_rope_head_dim": 6,
    "v_head_dim": 11,
    "intermediate_size": 51,
    "moe_intermediate_size": 17,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "lite": LITE,
    "biases": {"attention_bias": True},
    "lite, biases": {**LITE, "attention_bias": True},
    "odd sizes": ODD,
    "lite, odd sizes": {**ODD, **LITE},
    "dense": {"n_routed_experts": None},
    "experts from the first layer on": {"first_k_dense_replace": 0},
    "every second layer": {"first_k_dense_replace": 0, "moe_layer_freq": 2},
    "no shared experts, three layers": {"n_shared_experts": None, "num_hidden_layers": 3},
    "one expert a token": {"num_experts_per_tok": 1},
    "factor": {"routed_scaling_factor": 3.5},
    "yarn, magnitudes agree": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn, defaults": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}},
    "yarn, long": {"rope_scaling": {**YARN, "original_max_position_embeddings": 100000}, "rope_theta": 5e5},
    "yarn, short": {"rope_scaling": {**YARN, "original_max_position_embeddings": 2}},
    "another eps": {"rms_norm_eps": 1e-3},
}
V2_OPTIONS: dict[str, dict[str, Any]] = {
    "groups": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "every group kept": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 4},
    "greedy, with groups": {"n_group": 1, "topk_group": 1},
}
V3_OPTIONS: dict[str, dict[str, Any]] = {
    "no groups": {"n_group": 1, "topk_group": 1},
    "weights as they are": {"norm_topk_prob": False},
    "default rope": {"rope_scaling": None},
    "default rope, named": {"rope_scaling": {"rope_type": "default"}},
}
CASES = [(family, name, options) for family in FAMILIES for name, options in OPTIONS.items()]
CASES += [("deepseek_v2", name, options) for name, options in V2_OPTIONS.items()]
CASES += [("deepseek_v3", name, options) for name, options in V3_OPTIONS.items()]


@pytest.mark.parametrize(("family", "name", "options"), CASES, ids=[f"{f}-{n}" for f, n, _ in CASES])
def test_logits_are_stock_mlx_lms(family: str, name: str, options: dict[str, Any]) -> None:
    config = tiny_config(family, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    want = stock(ids)
    for arm in ("baseline", "flashnorm"):
        model = our_model(config, weights, arm, pack=False)
        assert relative_error(model(ids), want) <= TOLERANCE
        model.pack()
        assert relative_error(token_by_token(model, ids), want) <= TOLERANCE


@pytest.mark.parametrize("form", ["deferred", "weightless", "weightless, launched"])
@pytest.mark.parametrize("options", [{}, LITE, {"attention_bias": True}], ids=["full", "lite", "biases"])
@pytest.mark.parametrize("family", FAMILIES)
def test_deferred_and_weightless_are_one_value(
    family: str, options: dict[str, Any], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form of the flashnorm arm, whichever this device would take."""
    if form == "weightless, launched":
        monkeypatch.setattr(rope.mx, "default_device", lambda: mx.gpu)
    else:
        monkeypatch.setattr(norm, "deferring_pays", lambda a: form == "deferred")
    config = tiny_config(family, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    assert relative_error(token_by_token(our_model(config, weights), ids), stock(ids)) <= TOLERANCE


def test_default_rope_of_v2() -> None:
    """Stock mlx-lm's V2 knows yarn only; with a factor of 1 that is the default RoPE."""
    config = tiny_config("deepseek_v2", rope_scaling=None)
    stock, weights = stock_with_weights({**config, "rope_scaling": {"type": "yarn", "factor": 1.0}})
    ids = ids_for(config)
    assert relative_error(our_model(config, weights)(ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_head(family: str) -> None:
    """Stock mlx-lm has no tied head here: its own gets the embeddings as weights."""
    config = tiny_config(family, tie_word_embeddings=True)
    stock, weights = stock_with_weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    stock.load_weights(list(weights.items()))
    ids = ids_for(config)
    for arm in ("baseline", "flashnorm"):
        assert relative_error(token_by_token(our_model(config, weights, arm), ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("options", [{}, LITE], ids=["full", "lite"])
@pytest.mark.parametrize("family", FAMILIES)
def test_small_residuals_where_eps_matters(family: str, options: dict[str, Any]) -> None:
    """Residuals of RMS 1e-3 and below: both ε count, and the latents' is not the config's."""
    config = tiny_config(family, rms_norm_eps=1e-5, **options)
    stock, weights = stock_with_weights(config)
    weights = with_tiny_residuals(weights)
    stock.load_weights(list(weights.items()))
    ids = ids_for(config)
    assert relative_error(our_model(config, weights)(ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_arm_is_wrong_and_finite(family: str) -> None:
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    none = our_model(config, weights, "none")(ids)
    assert mx.all(mx.isfinite(none)).item()
    assert relative_error(none, stock(ids)) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_cache_with_offsets_a_row(family: str) -> None:
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    outputs = []
    ids = ids_for(config)
    for m in (stock, our_model(config, weights)):
        cache = [BatchKVCache([0, 4]) for _ in m.layers]
        outputs.append([m(ids, cache=cache)[:, 4:], m(ids[:, :1], cache=cache), m(ids[:, :3], cache=cache)])
    for want, got in zip(*outputs, strict=True):
        assert relative_error(got, want) <= TOLERANCE


def test_quantised_caches() -> None:
    """Expanded keys and values may be quantised; where the latent is cached, that is refused (mlx-lm fails there)."""
    wide = {"qk_nope_head_dim": 48, "v_head_dim": 32, "kv_lora_rank": 64, "qk_rope_head_dim": 16}
    outputs = []
    config = tiny_config("deepseek_v2", **wide)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config, 1)
    for m in (stock, our_model(config, weights)):
        cache = make_prompt_cache(m)
        m(ids, cache=cache)
        outputs.append(m(ids[:, :1], cache=[c.to_quantized(group_size=32, bits=8) for c in cache]))
    # a rounding step of the cache's 8 bits may fall either way
    assert relative_error(outputs[1], outputs[0]) <= 2e-2
    config = tiny_config("deepseek_v3", **(wide | {"qk_rope_head_dim": 32}))
    model = our_model(config, stock_with_weights(config)[1])
    cache = make_prompt_cache(model)
    model(ids, cache=cache)
    with pytest.raises(FlashNormError, match="quantised cache"):
        model(ids[:, :1], cache=[c.to_quantized(group_size=32, bits=8) for c in cache])


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_in_low_precision(family: str) -> None:
    """On the CPU too, where MLX's products of gathered matrices are float32's only."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    low = {k: v if "e_score" in k else v.astype(mx.float16) for k, v in weights.items()}
    model = our_model(config, low)
    ids = ids_for(config)
    assert model(ids).dtype == mx.float16
    close = mx.max(mx.abs(model(ids) - stock(ids)), axis=-1) <= 0.05 * mx.max(mx.abs(stock(ids)))
    assert mx.mean(close).item() > 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernels_yet(family: str) -> None:
    config = tiny_config(family)
    with pytest.raises(Uncovered, match="multi-head latent attention"):
        our_model(config, stock_with_weights(config)[1]).fuse()
