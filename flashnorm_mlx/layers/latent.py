"""Multi-head latent attention: queries, keys and values come from latents that are normed once more.

The first norm's scale cancels in the latent's norm, with ε/s² (:func:`..fold.cancelled_eps`). The columns of
``kv_a_proj_with_mqa`` that are rotated into the shared key have no second norm, and keep it; so does ``q_proj``, where
the queries have no latent. A bias ends the cancelling: the scale is settled in front of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.mla import MultiLinear

from ..errors import FlashNormError
from .heads import attend, split_heads
from .linear import stack_into
from .norm import settled
from .rope import Positions, Rotation

QKV = tuple[mx.array, mx.array, mx.array]


@dataclass(frozen=True)
class Sizes:
    """Of one layer of latent attention; ``q_lora_rank`` None: the queries come straight from the residual."""

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class LatentAttention(nn.Module):
    """What both forms share: the way to the latents and to the queries, and the output projection.

    Args:
        rotation: the RoPE of the queries' last channels, and of the key that all heads share.
        norm: makes the norm of a latent of so many entries.
        scale: of the products of queries and keys.
        bias: ``q_a_proj``, ``kv_a_proj_with_mqa`` and ``o_proj`` have one.
    """

    window = None
    needs_mask_array = False

    def __init__(
        self,
        sizes: Sizes,
        rotation: Rotation,
        norm: Callable[[int], nn.Module],
        scale: float,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.rotation, self.scale = sizes, rotation, scale
        queries = sizes.num_heads * sizes.qk_head_dim
        if sizes.q_lora_rank is None:
            self.q_proj = nn.Linear(sizes.hidden_size, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(sizes.hidden_size, sizes.q_lora_rank, bias=bias)
            self.q_a_layernorm = norm(sizes.q_lora_rank)
            self.q_b_proj = nn.Linear(sizes.q_lora_rank, queries, bias=False)
        latent = sizes.kv_lora_rank + sizes.qk_rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(sizes.hidden_size, latent, bias=bias)
        self.kv_a_layernorm = norm(sizes.kv_lora_rank)
        self.o_proj = nn.Linear(sizes.num_heads * sizes.v_head_dim, sizes.hidden_size, bias=bias)
        self.expand(sizes)

    def expand(self, sizes: Sizes) -> None:
        """Make what expands the latent to keys and values."""
        raise NotImplementedError

    def pack(self) -> None:
        """Lay the projections of the residual out as one matrix, where their formats allow it."""
        stack_into(self, "qkv_a_proj", self._first())

    def _first(self) -> tuple[str, ...]:
        if "qkv_a_proj" in self:
            return ("qkv_a_proj",)
        return ("q_proj" if self.sizes.q_lora_rank is None else "q_a_proj", "kv_a_proj_with_mqa")

    def _project(self, norm: nn.Module, h: mx.array, positions: Positions) -> tuple[QKV, mx.array, mx.array | None]:
        """``(q_nope, q_pe, k_pe), c, s``: queries and the shared rotated key, the latent c, and what it is owed.

        ``q_nope, q_pe [batch, heads, length, dim]``, ``k_pe [batch, 1, length, dim]``, ``c [batch, length, rank]``.
        """
        sizes = self.sizes
        y, s = norm(h, *(self[name] for name in self._first()))
        q, c, k_pe = mx.split(y, [-sizes.kv_lora_rank - sizes.qk_rope_head_dim, -sizes.qk_rope_head_dim], axis=-1)
        q, s_q = (q, s) if sizes.q_lora_rank is None else self.q_a_layernorm(_whole(q), self.q_b_proj, owed=s)
        s_q, s_k = (None if owed is None else owed[:, None] for owed in (s_q, s))
        q_nope, q_pe = mx.split(split_heads(q, q.shape[-1] // sizes.num_heads), [sizes.qk_nope_head_dim], axis=-1)
        q_pe, k_pe = positions.rotate(q_pe, s_q), positions.rotate(k_pe[:, None], s_k)
        return (settled(q_nope, s_q), q_pe, k_pe), _whole(c), s


class ExpandedAttention(LatentAttention):
    """Keys and values are expanded from the latent before they are cached (DeepSeek-V2 in mlx-lm)."""

    def expand(self, sizes: Sizes) -> None:
        expanded = sizes.num_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim)
        self.kv_b_proj = nn.Linear(sizes.kv_lora_rank, expanded, bias=False)

    def qkv(self, norm: nn.Module, h: mx.array, positions: Positions) -> QKV:
        """Norm → latents → norms → project → RoPE: ``[batch, heads, length, dim]`` each."""
        (q_nope, q_pe, k_pe), c, s = self._project(norm, h, positions)
        kv = settled(*self.kv_a_layernorm(c, self.kv_b_proj, owed=s))
        kv = split_heads(kv, kv.shape[-1] // self.sizes.num_heads)
        k_nope, v = mx.split(kv, [self.sizes.qk_nope_head_dim], axis=-1)
        k_pe = mx.broadcast_to(k_pe, (*k_nope.shape[:-1], k_pe.shape[-1]))
        return mx.concatenate([q_nope, q_pe], axis=-1), mx.concatenate([k_nope, k_pe], axis=-1), v

    def attend(self, qkv: QKV, mask: Any, cache: Any) -> mx.array:
        """``softmax(q kᵀ · scale) v`` over the cache and the new tokens: ``[batch, length, heads·dim]``."""
        return attend(*qkv, mask, cache, self.scale)


class AbsorbedAttention(LatentAttention):
    """The normed latent itself is cached (DeepSeek-V3); ``embed_q`` and ``unembed_out`` are kv_b_proj's halves.

    The cached latent has no gain where that was folded: it is in ``embed_q`` and ``unembed_out``.
    """

    needs_mask_array = True

    def expand(self, sizes: Sizes) -> None:
        self.embed_q = MultiLinear(sizes.qk_nope_head_dim, sizes.kv_lora_rank, sizes.num_heads)
        self.unembed_out = MultiLinear(sizes.kv_lora_rank, sizes.v_head_dim, sizes.num_heads)

    def qkv(self, norm: nn.Module, h: mx.array, positions: Positions) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Norm → latents → norms → RoPE: the queries' two parts, the latent ``[batch, 1, length, rank]``, the key.

        For one new token the expansions move to the query's and the output's side, and the latent is read as it is.
        """
        (q_nope, q_pe, k_pe), c, s = self._project(norm, h, positions)
        c = settled(*self.kv_a_layernorm.factors(c, s))
        return self.embed_q(q_nope) if h.shape[1] == 1 else q_nope, q_pe, c[:, None], k_pe

    def attend(self, qkv: tuple[mx.array, mx.array, mx.array, mx.array], mask: Any, cache: Any) -> mx.array:
        """``softmax((q_nope k_nopeᵀ + q_pe k_peᵀ) · scale) v`` with ``k_nope`` and ``v`` linear in the latent."""
        q, q_pe, c, k_pe = qkv
        if cache is not None:
            if hasattr(cache, "bits"):
                raise FlashNormError("a quantised cache is not supported where the latent is cached")
            c, k_pe = cache.update_and_fetch(c, k_pe)
        if q.shape[2] == 1:
            a = self.unembed_out(self._weighted(q, q_pe, c, k_pe, mask))
        else:
            scores = _masked((q_pe * self.scale) @ k_pe.swapaxes(-1, -2), mask)
            k, v = self.embed_q(c, transpose=False), self.unembed_out(c)
            a = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.scale, mask=scores)
        return a.transpose(0, 2, 1, 3).flatten(-2)

    def _weighted(self, q: mx.array, q_pe: mx.array, c: mx.array, k_pe: mx.array, mask: mx.array | None) -> mx.array:
        """``softmax((q cᵀ + q_pe k_peᵀ) · scale) c`` for one token; heads stand in the place of tokens.

        The scale is the products' own, and both are summed in the second's launch.
        """
        q, q_pe = q.swapaxes(1, 2), q_pe.swapaxes(1, 2)
        scores = mx.addmm(q_pe @ k_pe.swapaxes(-1, -2), q, c.swapaxes(-1, -2), alpha=self.scale, beta=self.scale)
        return (mx.softmax(_masked(scores, mask), axis=-1, precise=True) @ c).swapaxes(1, 2)


def _masked(scores: mx.array, mask: mx.array | None) -> mx.array:
    if mask is None:
        return scores
    return mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))


def _whole(latent: mx.array) -> mx.array:
    """A part of the products; that of one token in the layout that MLX's norm reads without a copy."""
    return latent.reshape(1, -1)[None] if latent.shape[:-1] == (1, 1) else latent
