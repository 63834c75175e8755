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
    return attended(q, k, v, mask, cache, scale)


def attended(q: mx.array, k: mx.array, v: mx.array, mask: Any, cache: Any, scale: float) -> mx.array:
    """``softmax(q kᵀ · scale) v`` over all keys and values: ``[batch, length, heads·dim]``; ``cache`` held them."""
    if q.shape[2] == 1 and mask is None and not hasattr(cache, "bits") and not has_kernel(q.shape[-1], v.shape[-1]):
        return one_attended(q, k, v, scale)
    a = scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=mask)
    return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)


def one_attended(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """The same for one new token: heads that share keys stand in the place of tokens, so that each product is one."""
    batch, heads, _, dim = q.shape
    q = q.reshape(batch, k.shape[1], -1, dim)
    scores = (q if scale == 1.0 else q * scale) @ k.swapaxes(-1, -2)
    return (mx.softmax(scores, axis=-1, precise=True) @ v).reshape(batch, 1, heads * v.shape[-1])


def has_kernel(dim: int, value_dim: int) -> bool:
    """Whether MLX attends in one launch; on CUDA it has kernels for some sizes of heads alone."""
    return mx.default_device() != mx.gpu or not mx.cuda.is_available() or (dim == value_dim and dim in (64, 96, 128))
