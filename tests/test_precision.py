"""bfloat16 and float16 against the same model in float32, whatever the residual's size: no worse than stock.

The error is relative and root mean square over all logits, and its median over some seeds at most 1.1 times stock
mlx-lm's: on one seed the two differ by up to a tenth either way, by which roundings happen to fall together.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import FAMILIES, our_model, stock_with_weights, tiny_config

from flashnorm_mlx import fold
from flashnorm_mlx.layers import norm

SEEDS = range(5)
RESIDUALS = (1e-2, 1.0, 3e2, 1e4)
#: Linear in what follows: enlarged, and what follows reduced, so that products of an unscaled residual would overflow.
ENLARGED, REDUCED = ("v_proj", "up_proj"), ("o_proj", "out_proj", "down_proj")
STACKED = ("gate_up_proj", "self_attn.qkv_proj")
#: Without a norm in front, a residual so large overflows stock's own products in float16.
OVERFLOWS = {"olmo2": (3e2, 1e4)}
PROJECTED_BACK = ("o_proj", "down_proj", "out_proj", "proj_2")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def with_residual(family: str, weights: dict[str, mx.array], rms: float) -> dict[str, mx.array]:
    """Weights that write a residual of about this RMS: embeddings, and what blocks add.

    A tied table stays where the logits can be told apart: blocks alone bring the residual beyond 1 then.
    """
    tied = "lm_head.weight" not in weights
    plus_one = 1.0 if family.startswith("gemma") else 0.0
    post_normed = any("post_feedforward" in name for name in weights)
    out = dict(weights)
    for name, w in weights.items():
        if "embed" in name:
            factor = w.shape[-1] ** 0.5 if plus_one else 1.0
            out[name] = w / 0.05 * (min(rms, 1.0) if tied else rms) / factor
        elif post_normed and any(part in name for part in POST_NORMS):
            out[name] = (w + plus_one) * (rms / 4) - plus_one
        elif not post_normed and any(part in name for part in PROJECTED_BACK):
            out[name] = w * (rms / 4)
        if any(part in name for part in STACKED):  # their last rows are v's, and up's
            rows = w.shape[0] // 2 if "gate_up" in name else w.shape[0] * 4 // 5
            out[name] = mx.concatenate([w[:rows], w[rows:] * 8])
        elif any(part in name for part in ENLARGED):
            out[name] = w * 8
        elif any(part in name for part in REDUCED):
            out[name] = out[name] / 8
    return out


def errors(family: str, dtype: mx.Dtype, rms: float, seed: int) -> tuple[float, float]:
    """Ours and stock's; infinite where a logit is not finite."""
    config = tiny_config(family)
    stock, weights = stock_with_weights(config, seed)
    low = {k: v.astype(dtype) for k, v in with_residual(family, weights, rms).items()}
    stock.load_weights([(k, v.astype(mx.float32)) for k, v in low.items()])
    mx.random.seed(100 + seed)
    ids = mx.random.randint(0, config["vocab_size"], (2, 16))
    exact = stock(ids)
    stock.load_weights(list(low.items()))

    def error(model: Any) -> float:
        logits = model(ids)
        assert logits.dtype == dtype
        found = mx.linalg.norm(logits.astype(mx.float32) - exact).item() / mx.linalg.norm(exact).item()
        return found if math.isfinite(found) else math.inf

    return error(our_model(config, low)), error(stock)


def medians(family: str, dtype: mx.Dtype, rms: float) -> tuple[float, float]:
    found = [errors(family, dtype, rms, seed) for seed in SEEDS]
    return statistics.median(ours for ours, _ in found), statistics.median(stock for _, stock in found)


@pytest.mark.parametrize("rms", RESIDUALS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_worse_than_stock(family: str, dtype: mx.Dtype, rms: float) -> None:
    found = [errors(family, dtype, rms, seed) for seed in SEEDS]
    for ours, stock in found:
        assert math.isfinite(ours) or not math.isfinite(stock)
    finite = [pair for pair in found if math.isfinite(pair[1])]
    if dtype == mx.float16 and rms in OVERFLOWS.get(family, ()):
        assert not finite
        return
    assert len(finite) > len(SEEDS) / 2, "stock overflows: nothing is compared"
    ours, stock = (statistics.median(column) for column in zip(*finite, strict=True))
    assert stock < 0.2, "stock is wrong altogether: nothing is compared"
    assert ours <= 1.1 * stock


# negative controls


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_control_deferring_in_float16_overflows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "deferring_pays", lambda a: True)
    ours, stock = medians(family, mx.float16, 1e4)
    assert math.isfinite(stock)
    assert not ours <= 1.1 * stock


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_control_two_bits_less_in_the_fold(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = fold.fold_gain
    digits = (8 if dtype == mx.float16 else 5) + 1.0

    def coarse(weight: mx.array, gain: mx.array, **options: Any) -> mx.array:
        folded = exact(weight, gain, **options)
        step = mx.power(2.0, mx.floor(mx.log2(mx.abs(folded.astype(mx.float32)) + 1e-30)) - digits)
        return (mx.round(folded.astype(mx.float32) / step) * step).astype(folded.dtype)

    monkeypatch.setattr(fold, "fold_gain", coarse)
    ours, stock = medians("llama", dtype, 1.0)
    assert ours > 1.1 * stock
