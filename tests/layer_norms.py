"""Small random LayerNorm models: what the tests of these families share."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from checkpoints import random_weights, stock_model, tiny_config
from mlx_lm.models.cache import make_prompt_cache

#: mlx-lm's olmo exits where this package is missing, of which it uses nothing.
sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))

FAMILIES = ("gpt2", "stablelm", "olmo")
TOLERANCE = 5e-6

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("gpt2", {"n_embd": 84, "n_head": 3, "vocab_size": 67, "layer_norm_epsilon": 1e-3}),
    ("gpt2", {"n_embd": 45, "n_head": 3}),
    ("stablelm", {}),
    ("stablelm", {"use_qkv_bias": False}),
    ("stablelm", {"use_parallel_residual": True}),
    ("stablelm", {"qk_layernorm": True}),
    ("stablelm", {"qk_layernorm": True, "use_qkv_bias": False, "use_parallel_residual": True}),
    ("stablelm", {"partial_rotary_factor": 1.0, "num_key_value_heads": 6}),
    (
        "stablelm",
        {
            "hidden_size": 84,
            "intermediate_size": 111,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.5,
        },
    ),
    ("olmo", {}),
    ("olmo", {"weight_tying": True}),
    ("olmo", {"d_model": 84, "n_heads": 3, "mlp_hidden_size": 222, "embedding_size": 90}),
]
IDS = [f"{family}-{'-'.join(f'{k}={v}' for k, v in options.items()) or 'plain'}" for family, options in OPTIONS]


def skewed(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights whose residual has a mean far from zero, so that centring matters; gains and biases far from 1 and 0."""
    out = {}
    for name, value in weights.items():
        if ".ln_" in name and name.endswith(".weight"):
            value = mx.random.uniform(0.3, 2.0, value.shape)
        elif any(table in name for table in ("wte", "wpe", "embed_tokens")):
            value = mx.random.normal(value.shape) * 0.5 + 0.7
        elif name.endswith(".bias"):
            value = value + 0.5
        elif any(writer in name for writer in ("c_proj", "o_proj", "down_proj", "attn_out", "blocks")):
            value = value + 0.3 * mx.random.normal((1, value.shape[1])) * value.shape[1] ** -0.5
        out[name] = value
    mx.eval(out)
    return out


def stock_with_weights(config: dict[str, Any], seed: int = 0) -> tuple[nn.Module, dict[str, mx.array]]:
    model = stock_model(config)
    weights = skewed(random_weights(model, seed))
    model.load_weights(list(weights.items()))
    return model, weights


def model_of(family: str, **options: Any) -> tuple[dict[str, Any], nn.Module, dict[str, mx.array]]:
    config = tiny_config(family, **options)
    return config, *stock_with_weights(config)


def ids_for(config: dict[str, Any], batch: int = 2, length: int = 21) -> mx.array:
    mx.random.seed(7)
    return mx.random.randint(0, config.get("embedding_size", config["vocab_size"]), (batch, length))


def token_by_token(model: Any, ids: mx.array, prefill: int = 9) -> mx.array:
    """Logits with a cache. mlx-lm's olmo knows single tokens only, and with a tied head returns its cache as well."""
    cache = make_prompt_cache(model)
    parts = [ids[:, :prefill]] if prefill else []
    parts += [ids[:, i : i + 1] for i in range(prefill, ids.shape[1])]
    logits = [model(part, cache=cache) for part in parts]
    return mx.concatenate([y[0] if isinstance(y, tuple) else y for y in logits], axis=1)


def wanted(config: dict[str, Any], stock: nn.Module, ids: mx.array) -> mx.array:
    """Stock mlx-lm's logits."""
    return token_by_token(stock, ids, 0) if config["model_type"] == "olmo" else stock(ids)
