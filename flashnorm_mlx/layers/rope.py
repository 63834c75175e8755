"""Rotary position embedding as two tables that anything linear can be folded into.

``RoPE(x) = x ⊙ C + swap(x) ⊙ S``. In the half-split layout ``C = [cos θ, cos θ, 1]``, ``S = [-sin θ, sin θ, 0]`` and
``swap([x₁, x₂, x₃]) = [x₂, x₁, x₃]``, where x₃ are the channels that a partial RoPE leaves alone; in the interleaved
layout neighbours take the place of the halves. A per-row scale multiplies both tables (§3: 1/RMS goes into RoPE); a
gain g in front of RoPE becomes ``C ⊙ g`` and ``S ⊙ swap(g)`` (§4.2; the paper's layout is the interleaved one).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import FlashNormError
from . import longrope, yarn

#: What config.json calls the types of scaling that change magnitudes too; mlx-lm and transformers know both names.
YARN = ("yarn", "deepseek_yarn")
LONGROPE = ("longrope", "su")

Tables = tuple[mx.array, mx.array]


@dataclass(frozen=True, eq=False)
class Rotation:
    """One kind of RoPE: of which channels of a head, by which angles.

    Args:
        inv_freq: angle a position of each rotated pair, ``[rotary dims / 2]``.
        traditional: pairs are neighbours (interleaved), not a half's width apart.
        factor: the rotated channels are multiplied by it (longrope and yarn).
    """

    head_dim: int
    inv_freq: np.ndarray
    traditional: bool = False
    factor: float = 1.0

    @property
    def dims(self) -> int:
        """Channels that are rotated, the first of each head."""
        return 2 * self.inv_freq.size

    @cached_property
    def frequencies(self) -> mx.array:
        return mx.array(self.inv_freq, mx.float32)

    @cached_property
    def periods(self) -> mx.array:
        with np.errstate(divide="ignore"):  # a pair that stands still has no period
            return mx.array(1 / self.inv_freq, mx.float32)

    def swap(self, x: mx.array) -> mx.array:
        """Each channel of the last axis gives way to the one that it is rotated with."""
        half, dims = self.dims // 2, self.dims
        if self.traditional:
            pairs = x[..., :dims].reshape(*x.shape[:-1], half, 2)
            parts = [mx.stack([pairs[..., 1], pairs[..., 0]], axis=-1).reshape(*x.shape[:-1], dims)]
        else:
            parts = [x[..., half:dims], x[..., :half]]
        return mx.concatenate([*parts, x[..., dims:]] if dims < self.head_dim else parts, axis=-1)

    def with_gain(self, base: Tables, gain: mx.array) -> Tables:
        """``C ⊙ g`` and ``S ⊙ swap(g)``: RoPE of ``g ⊙ x`` read off x (§4.2). ``gain [..., head_dim]``, broadcast."""
        c, s = base
        return c * gain, s * self.swap(gain)

    def rotate(self, x: mx.array, base: Tables, scale: mx.array | None = None) -> mx.array:
        """``s · RoPE(x)``, in x's dtype; ``x [batch, heads, length, head_dim]``, ``scale [batch, 1, length, 1]``."""
        c, s = base
        return _rotate(x, self.swap(x), c, s) if scale is None else _rotate_scaled(x, self.swap(x), c, s, scale)


def rotation(head_dim: int, dims: int, base: float, scaling: Mapping[str, Any] | None = None) -> Rotation:
    """The half-split RoPE of config.json's values, one object for equal values.

    See :func:`inverse_frequencies` and :func:`magnitude`.
    """
    return _rotation(head_dim, dims, base, json.dumps(scaling, sort_keys=True))


@lru_cache(maxsize=32)
def _rotation(head_dim: int, dims: int, base: float, scaling: str) -> Rotation:
    values = json.loads(scaling)
    return Rotation(head_dim, inverse_frequencies(dims, base, values), factor=magnitude(values))


def inverse_frequencies(dims: int, base: float, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """``θ_i / position`` for ``i < dims/2``: ``base^(-2i/dims)``, scaled as config.json's ``rope_scaling`` says.

    ``linear`` divides all of them by ``factor``. ``llama3`` divides those whose wavelength λ = 2π/f exceeds
    ``original / low_freq_factor``, keeps those below ``original / high_freq_factor``, and blends between, linearly
    in original/λ. ``yarn`` and ``longrope`` have a module each. float64 ``[dims/2]``.

    Raises:
        FlashNormError: for any other type.
    """
    f = base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    kind = rope_type(scaling)
    if kind == "default":
        return f
    assert scaling is not None
    if kind in YARN:
        return yarn.inverse_frequencies(dims, base, scaling)
    if kind in LONGROPE:
        return longrope.inverse_frequencies(dims, base, scaling)
    if kind == "linear":
        return f / scaling["factor"]
    if kind == "llama3":
        low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
        turns = scaling.get("original_max_position_embeddings", 8192) * f / (2 * math.pi)  # original / λ
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return f * (blend + (1 - blend) / scaling["factor"])
    known = ", ".join(("default", "linear", "llama3", *YARN, *LONGROPE))
    raise FlashNormError(f"config.json: RoPE scaling of type {kind!r} is not supported ({known} are)")


def magnitude(scaling: Mapping[str, Any] | None) -> float:
    """What the rotated channels are multiplied by, as config.json's ``rope_scaling`` says: 1 for most types."""
    if scaling is not None and rope_type(scaling) in YARN:
        return yarn.rope_magnitude(scaling)
    if scaling is not None and rope_type(scaling) in LONGROPE:
        return longrope.rope_magnitude(scaling)
    return 1.0


def rope_type(scaling: Mapping[str, Any] | None) -> str:
    """The type that a ``rope_scaling`` entry names; the key is ``rope_type``, in older files ``type``."""
    return str((scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default")


def tables(rotation: Rotation, offset: int | mx.array, length: int) -> Tables:
    """``C`` and ``S`` of the positions ``offset … offset + length - 1``, float32.

    ``[length, head_dim]`` for one offset, ``[batch, 1, length, head_dim]`` for an offset a row (batched caches, where
    it may be negative on left padding).
    """
    steps = mx.arange(length, dtype=mx.float32)
    if isinstance(offset, mx.array) and offset.ndim:
        positions = (offset.astype(mx.float32)[:, None] + steps)[:, None]
    else:
        positions = offset + steps
    theta = positions[..., None] * rotation.frequencies
    cos, sin = mx.cos(theta) * rotation.factor, mx.sin(theta) * rotation.factor
    c, s = [cos, cos], [-sin, sin]
    if rotation.traditional:
        c, s = ([mx.stack(pair, axis=-1).reshape(*theta.shape[:-1], rotation.dims)] for pair in (c, s))
    rest = (*theta.shape[:-1], rotation.head_dim - rotation.dims)
    if rest[-1]:
        c, s = [*c, mx.ones(rest)], [*s, mx.zeros(rest)]
    return mx.concatenate(c, axis=-1), mx.concatenate(s, axis=-1)


@dataclass(frozen=True)
class Positions:
    """Where the new tokens of one pass stand; their tables are made when first asked for."""

    rotation: Rotation
    offset: int | mx.array
    length: int

    @cached_property
    def tables(self) -> Tables:
        return tables(self.rotation, self.offset, self.length)

    @cached_property
    def arrays(self) -> list[mx.array]:
        """What a compiled function is given of it: the offset as an array, and the tables."""
        start = self.offset
        if isinstance(start, int):  # by an operation, for a fresh array lies in the host's memory on CUDA
            start = mx.negative(mx.array(-start, mx.int32))
        return [start, *self.tables]

    def with_arrays(self, arrays: list[mx.array]) -> Positions:
        """These positions, by such arrays."""
        made = replace(self, offset=arrays[0])
        vars(made)["tables"] = tuple(arrays[1:3])
        return made

    def rotate(self, x: mx.array, scale: mx.array | None) -> mx.array:
        """``scale · RoPE(x)``; MLX's own kernel does it where nothing is owed, on a GPU."""
        if scale is None and mx.default_device() == mx.gpu:
            return self.launch(x)
        return self.rotation.rotate(x, self.tables, scale)

    def launch(self, x: mx.array) -> mx.array:
        """RoPE by MLX's own kernel, for where nothing is folded into it; ``x [batch, heads, length, head_dim]``."""
        r = self.rotation
        if r.factor != 1.0 and r.dims < r.head_dim:
            return r.rotate(x, self.tables)
        x = x if r.factor == 1.0 else x * r.factor
        return mx.fast.rope(
            x, r.dims, traditional=r.traditional, base=None, scale=1.0, offset=self.offset, freqs=r.periods
        )


@partial(mx.compile, shapeless=True)
def _rotate(x: mx.array, swapped: mx.array, c: mx.array, s: mx.array) -> mx.array:
    return (x * c + swapped * s).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _rotate_scaled(x: mx.array, swapped: mx.array, c: mx.array, s: mx.array, scale: mx.array) -> mx.array:
    return (x * (c * scale) + swapped * (s * scale)).astype(x.dtype)
