"""The algebra against float64 numpy: each transformation's law, with random gains, shapes and dtypes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashnorm_mlx import fold
from flashnorm_mlx.layers.norm import add_clipped

SIZES = st.integers(1, 67)
SEEDS = st.integers(0, 2**31)
EPS = st.sampled_from([0.0, 1e-6, 1e-5, 1e-2])


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) * scale


def gain(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed + 1).uniform(0.2, 2.5, n)


def rms_norm(x: np.ndarray, g: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * g


def layer_norm(x: np.ndarray, g: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
    return rms_norm(x - x.mean(-1, keepdims=True), g, eps) + beta


def f32(x: np.ndarray) -> mx.array:
    return mx.array(x.astype(np.float32))


def close(got: mx.array, want: np.ndarray, tolerance: float = 2e-5) -> None:
    got64 = np.array(got.astype(mx.float32)).astype(np.float64)
    assert np.abs(got64 - want).max() <= tolerance * max(1.0, np.abs(want).max())


@settings(deadline=None, max_examples=40)
@given(SEEDS, SIZES, SIZES, EPS, st.booleans())
def test_weightless_and_deferred(seed: int, n: int, out: int, eps: float, plus_one: bool) -> None:
    """§1: RMSNorm(x; g) Wᵀ = (x W*ᵀ)·s, for both gain conventions."""
    x, w, g = random(seed, 3, n), random(seed + 2, out, n), gain(seed, n)
    stored = f32(g - 1 if plus_one else g)
    folded = fold.fold_gain(f32(w), stored, plus_one=plus_one)
    got = (f32(x) @ folded.T) * fold.inverse_rms(f32(x), eps)
    close(got, rms_norm(x, g, eps) @ w.T, 1e-4)


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES, SIZES, st.booleans())
def test_norm_bias(seed: int, n: int, out: int, has_bias: bool) -> None:
    """§1.1: (x̂ g + β) Wᵀ + c = x̂ W*ᵀ + c*; β is not scaled by g."""
    x, w, g = random(seed, 3, n), random(seed + 2, out, n), gain(seed, n)
    beta, c = random(seed + 3, n), random(seed + 4, out)
    bias = fold.fold_bias(f32(w), f32(beta), f32(c) if has_bias else None)
    got = f32(x) @ fold.fold_gain(f32(w), f32(g)).T + bias
    close(got, (x * g + beta) @ w.T + (c if has_bias else 0), 1e-4)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 67), SIZES, EPS)
def test_centring_turns_layer_norm_into_rms_norm(seed: int, n: int, inner: int, eps: float) -> None:
    """§1.2: LayerNorm of V z + b is RMSNorm of V* z + b*."""
    z, v, b = random(seed, 3, inner), random(seed + 1, n, inner), random(seed + 2, n)
    g, beta = gain(seed, n), random(seed + 3, n)
    v_star, b_star = fold.fold_centring(f32(v), f32(b))
    assert b_star is not None
    x = f32(z) @ v_star.T + b_star
    close(mx.mean(x, axis=-1), np.zeros(3), 1e-5)
    rows = (z @ v.T + b).std(-1).min()
    got = x * fold.inverse_rms(x, eps) * f32(g) + f32(beta)
    close(got, layer_norm(z @ v.T + b, g, beta, eps), 1e-3 if rows < 0.05 else 1e-4)


def test_centring_an_embedding() -> None:
    table = random(0, 11, 7)
    close(fold.centre(f32(table)), table - table.mean(-1, keepdims=True))


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES, SIZES, EPS)
def test_root_mean(seed: int, n: int, out: int, eps: float) -> None:
    """Appendix B: x/RMS(x) Wᵀ = x/RSS(x) (√n W)ᵀ, with nε under the root."""
    x, w = random(seed, 2, n), random(seed + 1, out, n)
    got = (f32(x) @ fold.fold_root_mean(f32(w)).T) * fold.inverse_rss(f32(x), eps)
    close(got, rms_norm(x, np.ones(n), eps) @ w.T, 1e-4)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 40), st.sampled_from([1.0, 0.1, 0.02, 1e-3]), st.sampled_from([1e-6, 1e-5]))
def test_cancelled_scale_needs_its_own_eps(seed: int, n: int, rms: float, eps: float) -> None:
    """§4.1: RMSNorm(s·p; ε) = RMSNorm(p; ε/s²), also where ε matters."""
    a, w = random(seed, 1, n, scale=rms), random(seed + 1, 8, n)
    s = 1 / np.sqrt((a**2).mean(-1, keepdims=True) + eps)
    p = a @ w.T
    want = rms_norm(p * s, np.ones(8), eps)
    got = f32(p) * fold.inverse_rms(f32(p), fold.cancelled_eps(eps, f32(s)))
    close(got, want, 1e-4)


def test_keeping_eps_after_cancelling_is_caught() -> None:
    """The control: with ε kept, the error is what the rule says it is, far above the tolerance."""
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=(1, 64)) * 0.02, rng.normal(size=(8, 64)) / 64
    s = 1 / np.sqrt((a**2).mean() + 1e-6)
    p = a @ w.T
    want, kept = rms_norm(p * s, np.ones(8), 1e-6), rms_norm(p, np.ones(8), 1e-6)
    assert np.abs(kept - want).max() > 1e-2 * np.abs(want).max()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_folding_rounds_once(dtype: mx.Dtype) -> None:
    """Low precision: folded in float32, rounded at the end, so exactly the rounded product."""
    w, g = f32(random(1, 33, 17)).astype(dtype), f32(gain(2, 17)).astype(dtype)
    folded = fold.fold_gain(w, g)
    assert folded.dtype == dtype
    exact = np.array(w.astype(mx.float32)).astype(np.float64) * np.array(g.astype(mx.float32)).astype(np.float64)
    assert mx.array_equal(folded, mx.array(exact.astype(np.float32)).astype(dtype))
    assert fold.fold_gain(w, g, dtype=mx.float32).dtype == mx.float32


def test_leading_axes_and_wrong_shapes() -> None:
    w, g = random(1, 4, 6, 5), gain(2, 5)
    close(fold.fold_gain(f32(w), f32(g)), w * g)
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        fold.fold_gain(f32(w), f32(gain(1, 6)))


def test_identity_gains() -> None:
    w = mx.array([0.5, 2.0], mx.bfloat16)
    for plus_one in (False, True):
        one = fold.identity_gain(w, plus_one=plus_one)
        assert one.dtype == mx.bfloat16
        assert mx.all(fold.effective_gain(one, plus_one=plus_one) == 1).item()


def test_wrong_gain_convention_is_caught() -> None:
    w, g, x = random(1, 9, 8), gain(3, 8), random(4, 2, 8)
    wrong = f32(x) @ fold.fold_gain(f32(w), f32(g), plus_one=True).T
    with pytest.raises(AssertionError):
        close(wrong, (x * g) @ w.T, 1e-2)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_one_plus_a_gain_is_not_rounded(dtype: mx.Dtype) -> None:
    """Stock mlx-lm's ``1 + w`` has the dtype of w: in bfloat16, 8 bits of it."""
    w = (mx.random.normal((999,)) * 0.3).astype(dtype)
    exact = 1 + np.array(w.astype(mx.float32)).astype(np.float64)
    assert np.abs(np.array(fold.effective_gain(w, plus_one=True)) - exact).max() <= 2**-23
    assert np.abs(np.array((1 + w).astype(mx.float32)) - exact).max() > 2**-13
    weight = mx.random.normal((3, 999))
    folded = fold.fold_gain(weight, w, plus_one=True)
    assert np.allclose(np.array(folded), np.array(weight) * exact, rtol=3e-7, atol=0)


def test_a_sum_behind_a_post_norm_is_clipped_in_float16() -> None:
    h = mx.array([6e4, -6e4, 1.0])
    assert add_clipped(h.astype(mx.float16), h.astype(mx.float16)).tolist() == [65504.0, -65504.0, 2.0]
    for dtype in (mx.float32, mx.bfloat16):
        assert mx.array_equal(add_clipped(h.astype(dtype), h.astype(dtype)), 2 * h.astype(dtype))
