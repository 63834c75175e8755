"""Whole models against stock mlx-lm: full forward, prefill and token by token, every option; and negative controls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import FAMILIES, our_model, relative_error, stock_with_weights, tiny_config, tying
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

from flashnorm_mlx import architectures, fold
from flashnorm_mlx.layers import rope

TOLERANCE = 5e-6
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"type": "linear", "factor": 3.0}
SLIDING = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 6}
SCALED = architectures.find("ministral3").TINY["rope_parameters"]

OPTIONS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
    "linear rope": {"rope_scaling": LINEAR},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
    "nested rope": {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    "odd sizes": {"hidden_size": 84, "intermediate_size": 111, "num_attention_heads": 3, "num_key_value_heads": 1},
    "head_dim": {"head_dim": 40},
    "all heads": {"num_key_value_heads": 6},
}
LLAMA_OPTIONS: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases, tied, llama3": {"attention_bias": True, "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "sliding": SLIDING,
    "yarn, magnitudes": {"rope_scaling": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2}},
}
#: What mlx-lm's model of a family doesn't read, or has under another name.
WITHOUT: dict[str, tuple[str, ...]] = {
    "qwen2": ("head_dim",),
    "gemma": ("untied", "linear rope", "llama3 rope", "yarn"),
    "gemma2": ("untied", "linear rope", "llama3 rope", "yarn"),
    "gemma3_text": ("yarn",),
    "openelm": ("untied", "tied", "linear rope", "llama3 rope", "yarn", "nested rope", "odd sizes", "all heads"),
    "phi3": ("linear rope", "llama3 rope", "yarn", "odd sizes", "head_dim", "all heads"),
    "ministral3": ("linear rope", "llama3 rope", "yarn", "nested rope"),
}
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("mistral", "untied", OPTIONS["untied"]),
    ("mistral", "yarn", {"rope_scaling": YARN}),
    ("olmo2", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("olmo2", "biases, tied, yarn", {"attention_bias": True, "tie_word_embeddings": True, "rope_scaling": YARN}),
    ("phi3", "linear rope", {"rope_scaling": LINEAR | {"long_factor": None}}),
    ("phi3", "default rope", {"rope_scaling": None}),
    ("phi3", "no longer context", {"original_max_position_embeddings": 512}),
    ("phi3", "odd sizes", {"hidden_size": 84, "intermediate_size": 111, "rope_scaling": None}),
    ("phi3", "whole heads", {"partial_rotary_factor": 1.0, "rope_scaling": None, "num_key_value_heads": 3}),
    ("ministral3", "sliding", SLIDING),
    ("ministral3", "unscaled", {"rope_parameters": SCALED | {"llama_4_scaling_beta": 0.0}}),
    ("ministral3", "magnitudes", {"rope_parameters": SCALED | {"mscale_all_dim": 0.3}}),
    ("ministral3", "default rope", {"rope_parameters": SCALED | {"rope_type": "default"}}),
    ("ministral3", "linear rope", {"rope_parameters": SCALED | {"rope_type": "linear"}}),
    ("gemma2", "caps", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
    ("gemma3_text", "mostly local layers", {"sliding_window_pattern": 4, "sliding_window": 3}),
    ("gemma3_text", "all layers global", {"sliding_window_pattern": 1}),
    ("openelm", "tied", {"share_input_output_layers": True}),
    ("openelm", "no QK-norm", {"normalize_qk_projections": False}),
    (
        "openelm",
        "odd sizes",
        {"model_dim": 84, "ffn_dim_divisor": 37, "num_query_heads": [3, 5, 1], "num_kv_heads": [3, 1, 1]},
    ),
]
CASES = [(f, name, o) for f in FAMILIES for name, o in OPTIONS.items() if name not in WITHOUT.get(f, ())]
CASES += [("llama", name, o) for name, o in LLAMA_OPTIONS.items()] + OTHERS


def ids_for(config: dict[str, Any], batch: int = 2, length: int = 21) -> mx.array:
    mx.random.seed(7)
    return mx.random.randint(0, config["vocab_size"], (batch, length))


def token_by_token(model: Any, ids: mx.array, prefill: int = 9) -> mx.array:
    cache = make_prompt_cache(model)
    parts = [model(ids[:, :prefill], cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(prefill, ids.shape[1])]
    return mx.concatenate(parts, axis=1)


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize(("family", "name", "options"), CASES, ids=[f"{f}-{n}" for f, n, _ in CASES])
def test_logits_are_stock_mlx_lms(family: str, name: str, options: dict[str, Any], arm: str) -> None:
    config = tiny_config(family, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    want = stock(ids)
    for pack in (False, True):
        model = our_model(config, weights, arm, pack=pack)
        assert relative_error(model(ids), want) <= TOLERANCE
    assert relative_error(token_by_token(model, ids), want) <= TOLERANCE


@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_deferred_and_weightless_are_one_value(
    family: str, tied: bool, defer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms of the flashnorm arm, whichever this device would take."""
    from flashnorm_mlx.layers import norm

    monkeypatch.setattr(norm, "deferring_pays", lambda a: defer)
    config = tiny_config(family, **tying(family, tied))
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    assert relative_error(token_by_token(our_model(config, weights), ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_small_residuals_where_eps_matters(family: str) -> None:
    """Residuals of RMS 1e-3 and below: the first norm's ε and the QK-norm's ε/s² both count."""
    config = tiny_config(family, rms_norm_eps=1e-5)
    stock, weights = stock_with_weights(config)
    for name in weights:
        if "embed" in name or "o_proj" in name or "down_proj" in name:
            weights[name] = weights[name] * 0.02
    stock.load_weights(list(weights.items()))
    ids = ids_for(config)
    assert relative_error(our_model(config, weights)(ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_arm_is_wrong_and_finite(family: str) -> None:
    """``none`` is wrong on purpose, and finite."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    none = our_model(config, weights, "none")(ids)
    assert mx.all(mx.isfinite(none)).item()
    assert relative_error(none, stock(ids)) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_cache_with_offsets_a_row(family: str) -> None:
    """Left-padded rows of a batched cache: each has its own positions."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    model = our_model(config, weights)
    ids = ids_for(config)
    cache = [BatchKVCache([0, 4]) for _ in model.layers]
    rows, alone = model(ids, cache=cache), stock(ids[1:, 4:])
    assert relative_error(rows[1:, 4:], alone) <= TOLERANCE
    if family in ("gemma2", "ministral3"):
        # mlx-lm's own lays a mask's rows over the key heads, or takes the logarithm of 0: rows see each other's padding
        return
    outputs = []
    for m in (stock, model):
        cache = [BatchKVCache([0, 4]) for _ in m.layers]
        outputs.append([m(ids, cache=cache)[0], m(ids[:, :1], cache=cache)])
    (want, want_next), (got, got_next) = outputs
    assert relative_error(got, want) <= TOLERANCE
    assert relative_error(got_next, want_next) <= TOLERANCE


def test_quantised_cache_and_embeddings_input() -> None:
    config = tiny_config("llama", head_dim=32, num_attention_heads=4, num_key_value_heads=2)
    stock, weights = stock_with_weights(config)
    model = our_model(config, weights)
    ids = ids_for(config, 1)
    outputs = []
    for m in (stock, model):
        cache = make_prompt_cache(m)
        m(ids, cache=cache)
        cache = [c.to_quantized(group_size=32, bits=8) for c in cache]
        outputs.append(m(ids[:, :1], cache=cache))
    # a rounding step of the cache's 8 bits may fall either way
    assert relative_error(outputs[1], outputs[0]) <= 2e-2
    embedded = model.model.embed_tokens(ids)
    assert mx.array_equal(model(None, input_embeddings=embedded), model(ids))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_is_no_worse_than_stock(family: str, dtype: mx.Dtype) -> None:
    """fp16 and bf16 are judged against the same model in float32 (here within 1.3 times stock, root mean square)."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    low = {k: v.astype(dtype) for k, v in weights.items()}
    stock.load_weights([(k, v.astype(mx.float32)) for k, v in low.items()])
    ids = ids_for(config, 4, 32)
    exact = stock(ids)
    stock.load_weights(list(low.items()))

    def error(logits: mx.array) -> float:
        assert mx.all(mx.isfinite(logits)).item()
        assert logits.dtype == dtype
        return mx.sqrt(mx.mean(mx.square(logits.astype(mx.float32) - exact))).item()

    assert error(our_model(config, low)(ids)) <= 1.3 * error(stock(ids))


def test_fp16_residuals_that_would_overflow_unscaled() -> None:
    """A residual RMS of 1e4 in float16: the product before scaling overflows; the arm must not let it."""
    config = tiny_config("llama")
    stock, weights = stock_with_weights(config)
    for name in weights:
        if "embed" in name:
            weights[name] = weights[name] * 2e5
    low = {k: v.astype(mx.float16) for k, v in weights.items()}
    stock.load_weights(list(low.items()))
    ids = ids_for(config)
    want, got = stock(ids), our_model(config, low)(ids)
    assert mx.all(mx.isfinite(want)).item()
    assert mx.all(mx.isfinite(got)).item()


# negative controls: each breaks the fold on purpose, and the comparison above must see it


def broken_error(family: str, model: Any, config: dict[str, Any], stock: Any) -> float:
    ids = ids_for(config)
    return relative_error(model(ids), stock(ids))


def test_control_wrong_gain_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("llama")
    stock, weights = stock_with_weights(config)
    model_class = architectures.find("llama").Model
    monkeypatch.setattr(model_class, "FOLDS", tuple(replace(f, plus_one=True) for f in model_class.FOLDS))
    assert broken_error("llama", our_model(config, weights), config, stock) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_control_missed_consumer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every consumer of every norm, left out in turn: its gain is lost, and seen to be."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config)
    model_class = architectures.find(family).Model
    folds = model_class.FOLDS
    for i, declared in enumerate(folds):
        for consumer in declared.into if len(declared.into) > 1 else ():
            fewer = replace(declared, into=tuple(c for c in declared.into if c != consumer))
            monkeypatch.setattr(model_class, "FOLDS", (*folds[:i], fewer, *folds[i + 1 :]))
            assert broken_error(family, our_model(config, weights), config, stock) > 1e-3, consumer


def test_control_eps_kept_after_cancelling(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashnorm_mlx.layers import norm

    config = tiny_config("qwen3", rms_norm_eps=1e-5)
    stock, weights = stock_with_weights(config)
    weights = {k: v * 0.02 if "embed" in k or "o_proj" in k or "down_proj" in k else v for k, v in weights.items()}
    stock.load_weights(list(weights.items()))
    monkeypatch.setattr(norm, "deferring_pays", lambda a: True)
    monkeypatch.setattr(fold, "cancelled_eps", lambda eps, scale: eps)
    assert broken_error("qwen3", our_model(config, weights), config, stock) > 1e-3


def test_control_scale_after_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashnorm_mlx.layers import norm

    config = tiny_config("llama", attention_bias=True)
    stock, weights = stock_with_weights(config)

    def wrong(self: Any, a: mx.array, *layers: Any) -> Any:
        y, bias = norm.products(layers, a), norm.bias_of(layers)
        return (y if bias is None else y + bias), fold.inverse_rms(a, self.eps)

    monkeypatch.setattr(norm.FlashNorm, "__call__", wrong)
    assert broken_error("llama", our_model(config, weights), config, stock) > 1e-2


def test_control_gain_not_swapped_in_the_sine_table(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("qwen3")
    stock, weights = stock_with_weights(config)
    monkeypatch.setattr(rope.Rotation, "with_gain", lambda self, base, gain: (base[0] * gain, base[1] * gain))
    assert broken_error("qwen3", our_model(config, weights), config, stock) > 1e-2


def test_control_tied_head_whose_gain_is_dropped() -> None:
    config = tiny_config("llama", tie_word_embeddings=True)
    stock, weights = stock_with_weights(config)
    model = our_model(config, weights)
    model.model.norm.pop("weight")
    assert broken_error("llama", model, config, stock) > 1e-2
