"""What stands between the matrix products of a pass over many tokens: an addition with its norm, and a gate."""

from __future__ import annotations

import mlx.core as mx

from . import dialect
from .project import ACTIVATIONS


def covers(dims: int, dtype: mx.Dtype) -> bool:
    """Whether rows of so many numbers are whole chunks of 16 bytes, of which each of 1024 threads has at most four."""
    return dims * dtype.size % 16 == 0 and dims * dtype.size <= 4 * 16 * 1024


def add_norm(x: mx.array, r: mx.array, eps: float, gain: mx.array | None = None) -> tuple[mx.array, mx.array]:
    """``a = x + r`` and ``RMSNorm(a; ε) ⊙ gain`` in one launch; both of x's shape ``[..., dims]`` and dtype.

    The squares are those of the sum as it is rounded; they are summed in float32. ``gain [dims]``; None: no gain.
    """
    dims = x.shape[-1]
    inputs = {"x": x, "r": r} | ({} if gain is None else {"gain": gain})
    simdgroups = _simdgroups(dims, x.dtype, 32)
    a, n = dialect.launch(
        "add_norm",
        inputs,
        {"T": x.dtype, "K": dims, "NSG": simdgroups, "EPS": dialect.bits_of(eps)},
        grid=(32 * (x.size // dims), simdgroups, 1),
        threadgroup=(32, simdgroups, 1),
        shape=x.shape,
        dtype=x.dtype,
        outputs=("a", "n"),
        defines={"GAIN(k)": "1.0f" if gain is None else "float(gain[k])"},
    )
    return a, n


def gate(x: mx.array, activation: str) -> mx.array:
    """``activation(x₁) ⊙ x₂`` of ``x = [x₁, x₂]``: ``[..., 2·dims] -> [..., dims]``, computed in float32."""
    dims = x.shape[-1] // 2
    simdgroups = _simdgroups(dims, x.dtype, 8)
    tiles = -(-dims * x.dtype.size // (16 * 32 * simdgroups))
    (y,) = dialect.launch(
        "gate",
        {"x": x},
        {"T": x.dtype, "N": dims, "NSG": simdgroups, "ACT": ACTIVATIONS.index(activation)},
        grid=(32 * tiles * (x.size // (2 * dims)), simdgroups, 1),
        threadgroup=(32, simdgroups, 1),
        shape=(*x.shape[:-1], dims),
        dtype=x.dtype,
    )
    return y


def _simdgroups(dims: int, dtype: mx.Dtype, most: int) -> int:
    """As many as have one chunk for each of their threads."""
    return min(most, -(-dims * dtype.size // (16 * 32)))
