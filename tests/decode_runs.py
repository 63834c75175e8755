"""Small models whose decode steps fused kernels can do, and plans of what to do with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from checkpoints import random_weights, relative_error, stock_model, tiny_config
from kernel_runs import on_device
from layer_norms import FAMILIES as LAYER_NORMS
from layer_norms import skewed
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model as load_stock
from mlx_lm.utils import quantize_model

from flashnorm_mlx.loader import load_model

#: What is done, and to how many tokens.
Action = tuple[str, int]

TOLERANCE = 5e-6
SHORT: list[Action] = [("prompt", 9), *[("step", 1)] * 4]

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "rms_norm_eps": 1e-4}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "openelm": {
        "model_dim": 128,
        "num_transformer_layers": 2,
        "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [0.5, 1.5],
        "rms_norm_eps": 1e-4,
        "head_dim": 64,
    },
    "qwen2": {**SIZES, **HEADS},
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 128, "layer_norm_epsilon": 1e-4},
    "stablelm": {**SIZES, **HEADS, "layer_norm_eps": 1e-4},
    "olmo": {"d_model": 128, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 384},
}


@contextmanager
def untraced(name: str) -> Iterator[str]:
    """On a device: one order of threads and no checks, for kernels have tests of their own. The harness can't trace."""
    with on_device(name, check=False, seeds=(0,)):
        if name == "harness":
            mx.disable_compile()
        yield name
        mx.enable_compile()


def checkpoint(folder: Path, family: str = "llama", bits: int | None = None, **overrides: Any) -> Path:
    """Heads of 64, as the kernels have them. Quantised as mlx_lm.convert -q does it."""
    config = tiny_config(family, **{**OWN_SIZES.get(family, {**SIZES, **HEADS, "head_dim": 64}), **overrides})
    model = stock_model(config)
    weights = random_weights(model)
    model.load_weights(list((skewed(weights) if family in LAYER_NORMS else weights).items()))
    if bits is not None:
        model, config = quantize_model(model, config, 32, bits)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tokens(count: int, batch: int = 1) -> mx.array:
    mx.random.seed(7)
    return mx.random.randint(2, 331, (batch, count))


def fused(path: Path, **options: Any) -> Any:
    model = load_model(path, kernels="reference", **options)
    model.fuse()
    return model


def run(model: Any, plan: list[Action], batch: int = 1) -> list[mx.array]:
    """Logits of every pass; the tokens are fixed, so that one small difference doesn't become a large one."""
    cache, at, outputs = make_prompt_cache(model), 0, []
    ids = tokens(sum(count for _, count in plan), batch)
    for kind, count in plan:
        if kind == "trim":
            assert trim_prompt_cache(cache, count) == count
        else:
            outputs.append(model(ids[:, at : at + count], cache=cache))
            mx.eval(outputs[-1])
            at += count
    return outputs


def rounding(path: Path, plan: list[Action], device: str) -> float:
    """What float32 may do in a long run: on a GPU, as much as stock mlx-lm differs there from itself on the CPU."""
    if device != "gpu":
        return TOLERANCE
    there = run(load_stock(path)[0], plan)
    with mx.stream(mx.cpu):
        here = run(load_stock(path)[0], plan)
    return max(TOLERANCE, 1.5 * error(there, here))


def error(got: list[mx.array], want: list[mx.array]) -> float:
    return max(relative_error(a, b) for a, b in zip(got, want, strict=True))
