"""Rows of the embedding table, dequantised, in one launch."""

from __future__ import annotations

import mlx.core as mx

from . import dialect
from .packed import Packed


def embed(ids: mx.array, w: Packed, *, factor: float = 1.0, residual: mx.array | None = None) -> mx.array:
    """``W[ids] · factor + residual``: ``ids [rows]`` -> ``[rows, columns]``."""
    rows, words = ids.size, w.columns * w.bits // 32
    template: dialect.Template = {
        "T": w.dtype,
        "N": w.rows,
        "K": w.columns,
        "BITS": w.bits,
        "GROUP": w.group_size,
        "FACTOR": dialect.bits_of(factor),
    }
    (y,) = dialect.launch(
        "embed",
        {"ids": ids, "w": w.buffer} | ({} if residual is None else {"h": residual}),
        template,
        grid=(-(-words // 32) * 32, rows, 1),
        threadgroup=(32, 1, 1),
        shape=(rows, w.columns),
        dtype=w.dtype,
        defines={"RESIDUAL(i)": "0.0f" if residual is None else "float(h[i])"},
    )
    return y
