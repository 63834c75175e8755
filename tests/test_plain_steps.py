"""One token without kernels on a GPU: no more operations than stock mlx-lm has, and the same logits."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache
from test_models import TOLERANCE, ids_for, token_by_token

from flashnorm_mlx.layers import heads

MOE = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 40}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4": ("gemma4_text", {}),
    "gemma4, values of their own": ("gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": None}),
    "gemma4, no inputs of each layer": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "gemma4, experts": ("gemma4_text", MOE),
    "gemma4, experts, nothing shared": ("gemma4_text", MOE | {"num_kv_shared_layers": 0}),
    "v2": ("deepseek_v2", {}),
    "v2, groups": ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    "v2, lite": ("deepseek_v2", {"q_lora_rank": None}),
    "v2, biases": ("deepseek_v2", {"attention_bias": True}),
    "v3": ("deepseek_v3", {}),
    "v3, no groups": ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    "v3, dense": ("deepseek_v3", {"n_routed_experts": None}),
}

#: What yields a view, and no launch.
VIEWS = ("Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten")


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the default device were one; what is asked of MLX itself is done on the CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.gpu)
        yield


@pytest.mark.parametrize("kernel", [True, False], ids=["MLX's attention", "plain attention"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_stock_mlx_lms(name: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "has_kernel", lambda *dims: kernel)
    model_type, options = CASES[name]
    config = tiny_config(model_type, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config, 1, 14)
    want = stock(ids)
    for arm in ("baseline", "flashnorm"):
        model = our_model(config, weights, arm)
        assert relative_error(token_by_token(model, ids), want) <= TOLERANCE
        assert model._compiled is not None


@pytest.mark.parametrize("name", ["gemma4, experts", "v2, lite", "v3"])
def test_weights_that_were_exchanged_are_seen(name: str) -> None:
    model_type, options = CASES[name]
    config = tiny_config(model_type, **options)
    _, weights = stock_with_weights(config)
    model = our_model(config, weights)
    ids = ids_for(config, 1, 5)
    token_by_token(model, ids, 3)
    model.layers[1].self_attn.o_proj.weight = model.layers[1].self_attn.o_proj.weight * 2.0
    cache = make_prompt_cache(model)
    whole = mx.concatenate([model(ids[:, :3], cache), model(ids[:, 3:4], cache), model(ids[:, 4:], cache)], axis=1)
    assert relative_error(whole, model(ids)) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 2])
def test_batched_caches_of_several_layers(rows: int) -> None:
    """They add to their offset in place, while layers behind still ask for it."""
    config = tiny_config("deepseek_v3", num_hidden_layers=3)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), ids_for(config, rows, 6)
    cache = [BatchKVCache([0] * rows) for _ in model.layers]
    got = mx.concatenate([model(ids[:, i : i + 1], cache) for i in range(6)], axis=1)
    assert relative_error(got, stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_a_step_has_fewer_operations_than_stock_mlx_lms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, options = CASES[name]
    # MLX's sizes of groups, one quantised format for all
    sizes = {"hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 64}
    latent = {"kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    per_layer = {"hidden_size_per_layer_input": options.get("hidden_size_per_layer_input", 64)}
    config = tiny_config(model_type, **{**options, **sizes, **(latent if "v" in name[:1] else per_layer)})
    if config.get("q_lora_rank"):
        config["q_lora_rank"] = 64
    stock, weights = stock_with_weights(config)
    for_ours = our_model(config, weights, pack=False)
    for model in (stock, for_ours):
        nn.quantize(model, 64, 4, class_predicate=lambda _, m: hasattr(m, "to_quantized") and _fits(m))
    for_ours.pack()
    caches = [make_prompt_cache(model) for model in (stock, for_ours)]
    for model, cache in zip((stock, for_ours), caches, strict=True):
        for _ in range(8):  # until windows are full
            mx.eval(model(mx.array([[3]]), cache), [c.state for c in cache])
    for_ours._compiled = None
    for function in ("rms_norm", "rope", "scaled_dot_product_attention"):
        monkeypatch.setattr(mx.fast, function, globals()[f"_{function}"])
    monkeypatch.setattr(mx, "dequantize", _dequantize)
    counts = [
        sum(operations(model(mx.array([[3]]), cache)).values())
        for model, cache in zip((stock, for_ours), caches, strict=True)
    ]
    assert counts[1] < counts[0], counts


def _fits(layer: nn.Module) -> bool:
    return layer.weight.shape[-1] % 64 == 0 and layer.weight.ndim < 4


def operations(out: mx.array) -> Counter[str]:
    """How many launches of each kind an array that is not computed yet takes; one that was compiled is one."""
    text = io.StringIO()
    mx.export_to_dot(text, out)
    names = re.findall(r'\[label ="(\w+)", shape=rectangle\]', text.getvalue())
    return Counter(name for name in names if name not in VIEWS)


def _rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """One operation, as each of these is on a GPU, which compiling neither joins to others nor takes for others."""
    return mx.cumsum(x, axis=-1) if weight is None else mx.depends([x], [weight])[0]


def _rope(x: mx.array, dims: int, *, offset: Any, freqs: mx.array | None = None, **_: Any) -> mx.array:
    return mx.depends([x], [a for a in (offset, freqs) if isinstance(a, mx.array)] or [x])[0]


def _scaled_dot_product_attention(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **_: Any) -> mx.array:
    out = mx.broadcast_to(q[..., :1], (*q.shape[:-1], v.shape[-1]))
    return mx.depends([out], [a for a in (k, v, mask) if isinstance(a, mx.array)])[0]


def _dequantize(w: mx.array, scales: mx.array, biases: mx.array, *, group_size: int, **_: Any) -> mx.array:
    joined = mx.depends([scales], [w, biases])[0]
    return mx.broadcast_to(joined[..., None], (*scales.shape, group_size)).flatten(-2)
