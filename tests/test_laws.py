"""The laws of §2 to §4 against float64 numpy, and where they don't hold: see test_fold for §1 and the appendices."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import EPS, SEEDS, SIZES, close, f32, random, rms_norm

from flashnorm_mlx import fold
from flashnorm_mlx.layers import rope

KINDS = ("relu", "glu", "reglu", "bilinear")


def activated(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bilinear":
        return x
    return x / (1 + np.exp(-x)) if kind == "glu" else np.maximum(x, 0)


def feed_forward(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return activated(x @ up.T, kind) @ down.T
    return (activated(x @ gate.T, kind) * (x @ up.T)) @ down.T


def without_a_norm(
    a: np.ndarray, s: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray, kind: str
) -> np.ndarray:
    """What the projections make of ``a``; a GLU's gate alone is scaled."""
    if kind == "glu":
        return (activated(s * (a @ gate.T), kind) * (a @ up.T)) @ down.T
    return feed_forward(a, gate, up, down, kind)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES, SIZES, EPS, st.sampled_from(KINDS), st.sampled_from([0.1, 1.0, 30.0]))
def test_one_scale_at_the_output(seed: int, n: int, inner: int, eps: float, kind: str, rms: float) -> None:
    """§2.1 and §2.2, with §1's gain in the weights."""
    a, g = random(seed, 3, n, scale=rms), np.random.default_rng(seed).uniform(0.2, 2.5, n)
    gate, up, down = (random(seed + i, *shape) / n for i, shape in enumerate([(inner, n), (inner, n), (5, inner)], 1))
    want = feed_forward(rms_norm(a, g, eps), gate, up, down, kind)
    s = fold.inverse_rms(f32(a), eps)
    y = without_a_norm(a, np.array(s, np.float64), gate * g, up * g, down, kind)
    close(f32(y) * fold.owed_at_the_output(s, kind), want, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_control_a_bias_of_up_forbids_it(kind: str) -> None:
    a, gate, up, down = (random(i, *shape) for i, shape in enumerate([(3, 7), (9, 7), (9, 7), (5, 9)]))
    c, s = random(9, 9), 1 / np.sqrt((a**2).mean(-1, keepdims=True))

    def biased(x: np.ndarray, gate_scale: np.ndarray | float = 1.0) -> np.ndarray:
        u = x @ up.T + c
        return (activated(u, kind) if kind == "relu" else activated(gate_scale * (x @ gate.T), kind) * u) @ down.T

    owed = np.array(fold.owed_at_the_output(f32(s), kind), np.float64)
    deferred = biased(a, s if kind == "glu" else 1.0) * owed
    assert np.abs(deferred - biased(s * a)).max() > 0.05 * np.abs(biased(s * a)).max()


def test_control_the_unscaled_product_overflows_float16() -> None:
    """At an RMS of 300, where stock's stays finite."""
    a = f32(random(0, 2, 64) * 300).astype(mx.float16)
    gate, up = (f32(random(i, 96, 64) / 8).astype(mx.float16) for i in (1, 2))
    s = fold.inverse_rms(a, 1e-6).astype(mx.float16)
    scaled = mx.maximum((a * s) @ gate.T, 0) * ((a * s) @ up.T)
    unscaled = mx.maximum(a @ gate.T, 0) * (a @ up.T)
    assert mx.all(mx.isfinite(scaled)).item() and not mx.all(mx.isfinite(unscaled)).item()


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'swish'"):
        fold.owed_at_the_output(mx.ones(1), "swish")


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES, st.sampled_from([1.0, 0.1, 0.02]), st.sampled_from([1e-6, 1e-5]))
def test_a_post_norm_cancels_ups_scale(seed: int, inner: int, rms: float, eps: float) -> None:
    """Gemma 2 to 4: ``RMSNorm((act(s·g) ⊙ s·u) Dᵀ; ε) = RMSNorm((act(s·g) ⊙ u) Dᵀ; ε/s²)``."""
    a = random(seed, 1, 12, scale=rms)
    gate, up, down = (random(seed + i, *shape) for i, shape in enumerate([(inner, 12), (inner, 12), (8, inner)], 1))
    s = 1 / np.sqrt((a**2).mean(-1, keepdims=True) + eps)
    want = rms_norm(feed_forward(s * a, gate, up, down, "glu"), np.ones(8), eps)
    p = f32(without_a_norm(a, s, gate, up, down, "glu"))
    close(p * fold.inverse_rms(p, fold.cancelled_eps(eps, f32(s))), want, 2e-4)


def turned(x: np.ndarray, frequencies: np.ndarray, offset: int, traditional: bool) -> np.ndarray:
    """RoPE in complex numbers; channels behind the rotated ones stay."""
    dims = 2 * frequencies.size
    z, rest = x[..., :dims], x[..., dims:]
    a, b = (z[..., ::2], z[..., 1::2]) if traditional else (z[..., : dims // 2], z[..., dims // 2 :])
    w = (a + 1j * b) * np.exp(1j * (offset + np.arange(x.shape[-2]))[:, None] * frequencies)
    parts = np.stack([w.real, w.imag], -1).reshape(z.shape) if traditional else np.concatenate([w.real, w.imag], -1)
    return np.concatenate([parts, rest], -1)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 12), st.integers(0, 5), st.integers(0, 50), st.booleans())
def test_scales_and_gains_in_ropes_tables(seed: int, pairs: int, still: int, offset: int, traditional: bool) -> None:
    """§3 and §4.2: 1/RMS, the softmax's scale and the QK-norm's gain, in both layouts; some channels stand still."""
    d = 2 * pairs + still
    x, g = random(seed, 2, 3, 4, d), np.random.default_rng(seed).uniform(0.3, 2.0, (3, 1, d))
    s = np.random.default_rng(seed + 1).uniform(0.1, 9.0, (2, 1, 4, 1))
    r = rope.Rotation(d, rope.inverse_frequencies(2 * pairs, 1e4), traditional=traditional)
    tables = r.with_gain(rope.tables(r, offset, 4), f32(g))
    got = r.rotate(f32(x), tables, f32(s) * d**-0.5)
    close(got, s * d**-0.5 * turned(x * g, r.inv_freq, offset, traditional), 1e-4)


def test_control_the_other_layouts_permutation() -> None:
    """Halves are not neighbours: a gain that is swapped the paper's way is wrong in MLX's usual layout."""
    x, g = random(0, 1, 1, 4, 8), np.random.default_rng(1).uniform(0.3, 2.0, 8)
    r = rope.Rotation(8, rope.inverse_frequencies(8, 1e4))
    c, s = rope.tables(r, 3, 4)
    neighbours = g.reshape(4, 2)[:, ::-1].reshape(8)
    got = r.rotate(f32(x), (c * f32(g), s * f32(neighbours)))
    with pytest.raises(AssertionError):
        close(got, turned(x * g, r.inv_freq, 3, False), 1e-2)


@settings(deadline=None, max_examples=20)
@given(SEEDS, SIZES)
def test_one_gain_for_channels_that_stand_still(seed: int, d: int) -> None:
    q, k = random(seed, 3, d), random(seed + 1, 5, d)
    g_q, g_k = np.random.default_rng(seed).uniform(0.3, 2.0, (2, d))
    joint = np.array(fold.joint_gain(f32(g_q), f32(g_k)), np.float64)
    assert np.abs((q * joint) @ k.T - (q * g_q) @ (k * g_k).T).max() <= 1e-5 * max(1.0, d)
