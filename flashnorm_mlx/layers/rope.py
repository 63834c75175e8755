"""Rotary position embedding as two tables that anything linear can be folded into.

``RoPE(x) = x ⊙ C + swap(x) ⊙ S`` with, in the half-split layout, ``C = [cos θ, cos θ]``, ``S = [-sin θ, sin θ]`` and
``swap([x₁, x₂]) = [x₂, x₁]``. A per-row scale multiplies both tables (§3: 1/RMS goes into RoPE); a gain g in front of
RoPE becomes ``C ⊙ g`` and ``S ⊙ swap(g)`` (§4.2; the paper swaps neighbours, the half-split layout swaps halves).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import FlashNormError

Tables = tuple[mx.array, mx.array]


def inverse_frequencies(dims: int, base: float, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """``θ_i / position`` for ``i < dims/2``: ``base^(-2i/dims)``, scaled as config.json's ``rope_scaling`` says.

    ``linear`` divides all of them by ``factor``. ``llama3`` divides those whose wavelength λ = 2π/f exceeds
    ``original / low_freq_factor``, keeps those below ``original / high_freq_factor``, and blends between, linearly
    in original/λ. float64 ``[dims/2]``.

    Raises:
        FlashNormError: for any other type.
    """
    f = base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    kind = rope_type(scaling)
    if kind == "default":
        return f
    assert scaling is not None
    factor = scaling["factor"]
    if kind == "linear":
        return f / factor
    if kind == "llama3":
        low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
        turns = scaling.get("original_max_position_embeddings", 8192) * f / (2 * math.pi)  # original / λ
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return f * (blend + (1 - blend) / factor)
    raise FlashNormError(f"config.json: RoPE scaling of type {kind!r} is not supported (default, linear, llama3 are)")


def rope_type(scaling: Mapping[str, Any] | None) -> str:
    """The type that a ``rope_scaling`` entry names; the key is ``rope_type``, in older files ``type``."""
    return str((scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default")


def swap(x: mx.array) -> mx.array:
    """``[x₁, x₂] -> [x₂, x₁]``: the halves of the last axis change places."""
    half = x.shape[-1] // 2
    return mx.concatenate([x[..., half:], x[..., :half]], axis=-1)


def tables(inv_freq: mx.array, offset: int | mx.array, length: int) -> Tables:
    """``C`` and ``S`` of the positions ``offset … offset + length - 1``, float32.

    ``[length, dims]`` for one offset, ``[batch, 1, length, dims]`` for an offset a row (batched caches, where it may
    be negative on left padding).
    """
    steps = mx.arange(length, dtype=mx.float32)
    if isinstance(offset, mx.array) and offset.ndim:
        positions = (offset.astype(mx.float32)[:, None] + steps)[:, None]
    else:
        positions = offset + steps
    theta = positions[..., None] * inv_freq
    cos, sin = mx.cos(theta), mx.sin(theta)
    return mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)


def with_gain(base: Tables, gain: mx.array) -> Tables:
    """``C ⊙ g`` and ``S ⊙ swap(g)``: RoPE of ``g ⊙ x`` read off x (§4.2). ``gain [..., dims]``, broadcast."""
    c, s = base
    return c * gain, s * swap(gain)


@dataclass(frozen=True)
class Positions:
    """Where the new tokens of one pass stand; their tables are made when first asked for."""

    inv_freq: mx.array
    offset: int | mx.array
    length: int

    @cached_property
    def tables(self) -> Tables:
        return tables(self.inv_freq, self.offset, self.length)

    def launch(self, x: mx.array) -> mx.array:
        """RoPE by MLX's own kernel, for where nothing is folded into it; ``x [batch, heads, length, dims]``."""
        periods = 1 / self.inv_freq
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=self.offset, freqs=periods)


def rotate(x: mx.array, base: Tables, scale: mx.array | None = None) -> mx.array:
    """``s · RoPE(x)``, in x's dtype; ``x [batch, heads, length, dims]``, ``scale [batch, 1, length, 1]`` or None."""
    c, s = base
    return _rotate(x, swap(x), c, s) if scale is None else _rotate_scaled(x, swap(x), c, s, scale)


@partial(mx.compile, shapeless=True)
def _rotate(x: mx.array, swapped: mx.array, c: mx.array, s: mx.array) -> mx.array:
    return (x * c + swapped * s).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _rotate_scaled(x: mx.array, swapped: mx.array, c: mx.array, s: mx.array, scale: mx.array) -> mx.array:
    return (x * (c * scale) + swapped * (s * scale)).astype(x.dtype)
