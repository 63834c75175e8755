"""DyT: explicit and folded, against float64, alone and in a model that learns nothing."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoints import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from flashnorm_mlx import fold
from flashnorm_mlx.layers.dyt import DyT, FoldedDyT
from flashnorm_mlx.layers.norm import settled


def random_dyt(n: int, alpha: float = 0.8) -> DyT:
    norm = DyT(n, alpha)
    norm.weight, norm.bias = mx.random.uniform(0.3, 2.0, (n,)), mx.random.normal((n,)) + 0.5
    return norm


def f64(x: mx.array) -> np.ndarray:
    return np.array(x).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 67), st.integers(1, 67), st.booleans(), st.sampled_from([-2.0, 0.1, 0.8]))
def test_the_law(seed: int, n: int, out: int, has_bias: bool, alpha: float) -> None:
    """§1.1: (tanh(α a)·g + β) Wᵀ + c = tanh(α a) W*ᵀ + c*."""
    mx.random.seed(seed)
    norm, layer, a = random_dyt(n, alpha), nn.Linear(n, out, bias=has_bias), 3 * mx.random.normal((4, n))
    x = np.tanh(alpha * f64(a)) * f64(norm.weight) + f64(norm.bias)
    want = x @ f64(layer.weight).T + (f64(layer.bias) if has_bias else 0)
    explicit = settled(*norm(a, layer))
    folded = norm.fold_into(layer)
    for got in (explicit, settled(*folded(a, layer))):
        assert np.abs(f64(got) - want).max() <= 2e-5 * max(1.0, np.abs(want).max())


class Block(nn.Module):
    """A pre-norm block of two projections behind one DyT and one behind another."""

    def __init__(self, n: int, inner: int, form: Any = random_dyt) -> None:
        super().__init__()
        self.norm, self.gate, self.up = form(n), nn.Linear(n, inner, bias=False), nn.Linear(n, inner)
        self.inner_norm, self.down = form(inner), nn.Linear(inner, n)

    def __call__(self, h: mx.array) -> mx.array:
        gate, up = mx.split(settled(*self.norm(h, self.gate, self.up)), 2, axis=-1)
        return h + settled(*self.inner_norm(nn.silu(gate) * up, self.down))

    def fold(self) -> None:
        self.norm = self.norm.fold_into(self.gate, self.up)
        self.inner_norm = self.inner_norm.fold_into(self.down)


@pytest.fixture
def blocks() -> nn.Sequential:
    mx.random.seed(3)
    return nn.Sequential(*[Block(48, 77) for _ in range(3)])


def test_a_small_model(blocks: nn.Sequential) -> None:
    h = mx.random.normal((2, 5, 48))
    want = blocks(h)
    for block in blocks.layers:
        block.fold()
        assert isinstance(block.norm, FoldedDyT) and set(block.norm.parameters()) == {"alpha"}
        assert "bias" in block.gate
    assert relative_error(blocks(h), want) <= 5e-6


@pytest.mark.parametrize("lost", ["gain", "bias", "order", "consumer"])
def test_controls(blocks: nn.Sequential, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h = mx.random.normal((2, 5, 48))
    want = blocks(h)
    if lost == "gain":
        monkeypatch.setattr(fold, "fold_gain", lambda weight, gain: weight)
    elif lost == "bias":
        monkeypatch.setattr(fold, "fold_bias", lambda weight, beta, bias: bias)
    elif lost == "order":
        folded_bias = fold.fold_bias
        monkeypatch.setattr(
            fold,
            "fold_affine",
            lambda w, c, g, beta: (fold.fold_gain(w, g), folded_bias(fold.fold_gain(w, g), beta, c)),
        )
    for block in blocks.layers:
        if lost == "consumer":
            block.norm = block.norm.fold_into(block.gate)
        else:
            block.fold()
    assert relative_error(blocks(h), want) > 1e-3


def test_low_precision_rounds_once() -> None:
    mx.random.seed(5)
    norm, layer = random_dyt(32), nn.Linear(32, 16)
    layer.set_dtype(mx.bfloat16)
    want, bias = fold.fold_affine(
        layer.weight.astype(mx.float32), layer.bias.astype(mx.float32), norm.weight, norm.bias
    )
    norm.fold_into(layer)
    assert mx.array_equal(layer.weight, want.astype(mx.bfloat16))
    assert bias is not None and mx.array_equal(layer.bias, bias.astype(mx.bfloat16))


def test_a_layer_of_another_size() -> None:
    with pytest.raises(ValueError, match="shape"):
        random_dyt(8).fold_into(nn.Linear(9, 4))
