"""RoPE's tables against float64 numpy and mlx-lm's own frequencies."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.layers import rope


def rotated(x: np.ndarray, inv_freq: np.ndarray, offset: int) -> np.ndarray:
    """Half-split RoPE in complex numbers, float64; ``x [..., length, dims]``."""
    half = x.shape[-1] // 2
    angles = (offset + np.arange(x.shape[-2]))[:, None] * inv_freq
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("dims", [2, 24, 64])
@pytest.mark.parametrize("offset", [0, 5, 1000])
def test_scale_and_gain_in_the_tables(dims: int, offset: int) -> None:
    """s · RoPE(g ⊙ x) read off x, for a scale a row and a gain a head."""
    rng = np.random.default_rng(dims + offset)
    x, s, g = rng.normal(size=(2, 3, 7, dims)), rng.uniform(0.1, 9, (2, 1, 7, 1)), rng.uniform(0.3, 2, (3, 1, dims))
    f = rope.inverse_frequencies(dims, 1e4)
    rotation = rope.Rotation(dims, f)
    tables = rotation.with_gain(rope.tables(rotation, offset, 7), mx.array(g, mx.float32))
    got = rotation.rotate(mx.array(x, mx.float32), tables, mx.array(s, mx.float32))
    want = s * rotated(x * g, f, offset)
    assert np.abs(np.array(got) - want).max() <= (1e-5 + offset * 1e-7) * np.abs(want).max()


def test_an_offset_a_row() -> None:
    r = rope.Rotation(16, rope.inverse_frequencies(16, 1e4))
    x = mx.random.normal((2, 3, 4, 16))
    both = r.rotate(x, rope.tables(r, mx.array([3, -2]), 4))
    for row, offset in enumerate((3, -2)):
        one = r.rotate(x[row : row + 1], rope.tables(r, offset, 4))
        assert mx.allclose(both[row], one[0], atol=1e-6).item()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        {
            "type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {
            "type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 300,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 1.5,
            "mscale_all_dim": 0.5,
        },
        {
            "type": "longrope",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 300,
            "long_factor": [1 + i / 3 for i in range(32)],
            "short_factor": [1.0] * 32,
        },
    ],
)
def test_scaled_frequencies_are_mlx_lms(scaling: dict) -> None:
    theirs = initialize_rope(64, 5e5, False, scaling, 4096)
    x = mx.random.normal((1, 2, 50, 64))
    r = rope.rotation(64, 64, 5e5, scaling)
    ours = rope.tables(r, 11, 50)
    assert mx.allclose(r.rotate(x, ours), theirs(x, offset=11), atol=2e-5).item()


def test_wavelengths_of_llama3() -> None:
    """Long waves are stretched by the factor, short ones stay."""
    plain = rope.inverse_frequencies(128, 5e5)
    scaled = rope.inverse_frequencies(128, 5e5, {"rope_type": "llama3", "factor": 8.0})
    wavelength = 2 * math.pi / plain
    assert np.allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    assert np.allclose(scaled[wavelength < 2048], plain[wavelength < 2048])


def test_unknown_type_is_named() -> None:
    with pytest.raises(FlashNormError, match="'dynamic' is not supported"):
        rope.inverse_frequencies(64, 1e4, {"rope_type": "dynamic", "factor": 2.0})
