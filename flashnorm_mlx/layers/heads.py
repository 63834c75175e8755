"""Attention between projections: heads apart, attended, and side by side again."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention


def split_heads(y: mx.array, head_dim: int) -> mx.array:
    """``[batch, length, heads·dim] -> [batch, heads, length, dim]``."""
    return y.reshape(*y.shape[:2], -1, head_dim).transpose(0, 2, 1, 3)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: Any, cache: Any, scale: float | None = None) -> mx.array:
    """``softmax(q kᵀ · scale) v`` over the cache and the new tokens: ``[batch, length, heads·dim]``.

    Args:
        scale: None: ``1/sqrt(dim)``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cache is not None:
        k, v = cache.update_and_fetch(k, v)
    a = scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=mask)
    return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)
