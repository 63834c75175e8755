"""Attention: two of the block's five operations, ``qkv`` and ``attend``, and the projection of a third, ``o_proj``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import fold
from ..errors import FlashNormError
from ..kernels.attend import Heads
from . import rope
from .heads import attend, split_heads
from .linear import stack_into
from .norm import Owed, settled

QKV = tuple[mx.array, mx.array, mx.array]

#: What stands in front of projections: a norm's arm, or whatever else is called as one.
Norm = Callable[..., Owed]


class Attention(nn.Module):
    """Grouped-query attention: ``num_heads`` query heads share ``num_kv_heads`` key and value heads.

    Args:
        rotation: the RoPE of q and k.
        fused: the checkpoint holds q, k and v as one ``qkv_proj``.
        qk_norm_eps: ε of a QK-norm over each head's ``head_dim`` (``q_norm``, ``k_norm``); None: no QK-norm.
        scale: of the scores; None: ``1/sqrt(head_dim)``.
        softcap: ``cap · tanh(score / cap)``; None: none.
        window: a token sees so many, itself included; None: all.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        rotation: rope.Rotation,
        *,
        fused: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm_eps: float | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        head_dim = rotation.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotation, self.softcap, self.window = rotation, softcap, window
        self.scale = head_dim**-0.5 if scale is None else scale
        if fused:
            self.qkv_proj = nn.Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
            self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
            self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=o_bias)
        self.qk_norm_eps = qk_norm_eps
        if qk_norm_eps is not None:
            self.q_norm = Gain(head_dim)
            self.k_norm = Gain(head_dim)

    def qkv(self, norm: Norm, h: mx.array, positions: rope.Positions) -> QKV:
        """Norm → project → QK-norm → RoPE: ``[batch, heads, length, head_dim]`` each.

        The scale that the norm owes goes into RoPE's tables for q and k, onto v plainly; a QK-norm cancels it for q
        and k (§3, §4.1). Where nothing is owed, on a GPU, MLX's kernels for norm and RoPE are fewer launches.
        """
        y, s = norm(h, *self.qkv_layers)
        launched = s is None and mx.default_device() == mx.gpu
        if launched and self.qk_norm_eps is not None:
            return self._launched_qkv(y, positions)
        y, s = self._heads((y, s))
        rotated = self.num_heads + self.num_kv_heads
        qk, v = y[:, :rotated], settled(y[:, rotated:], s)
        if launched:
            qk = positions.launch(qk)
        elif self.qk_norm_eps is None:
            qk = self.rotation.rotate(qk, positions.tables, s)
        else:
            qk = self.rotation.rotate(self._qk_norm(qk, s), self.rotation.with_gain(positions.tables, self._qk_gain()))
        return qk[:, : self.num_heads], qk[:, self.num_heads :], v

    def attend(self, qkv: QKV, mask: Any, cache: Any) -> mx.array:
        """``softmax(q kᵀ · scale) v`` over the cache and the new tokens: ``[batch, length, heads·dim]``."""
        if self.softcap is None:
            return attend(*qkv, mask, cache, self.scale)
        q, k, v = qkv
        if hasattr(cache, "bits"):
            raise FlashNormError("a quantised cache is not supported where scores have a soft cap")
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        a = softcapped_attention(q, k, v, self.scale, self.softcap, mask)
        return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)

    def pack(self) -> None:
        """Lay q, k and v out as one matrix, where their formats allow it."""
        if "q_proj" in self:
            stack_into(self, "qkv_proj", ("q_proj", "k_proj", "v_proj"))

    @property
    def needs_mask_array(self) -> bool:
        """Whether scores are computed in plain operations, which know no mask by name."""
        return self.softcap is not None

    @property
    def heads(self) -> Heads:
        """What the kernel needs to know."""
        r = self.rotation
        return Heads(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            scale=self.scale,
            rotary_dims=r.dims,
            traditional=r.traditional,
            qk_norm_eps=self.qk_norm_eps,
            softcap=self.softcap,
            window=self.window,
        )

    @property
    def qk_gains(self) -> mx.array | None:
        """The QK-norm's, q's and then k's, for the kernel; None where there is no QK-norm."""
        if self.qk_norm_eps is None:
            return None
        return mx.concatenate([self.q_norm["weight"], self.k_norm["weight"]]).astype(mx.float32)

    @property
    def qkv_layers(self) -> tuple[nn.Module, ...]:
        return (self.qkv_proj,) if "qkv_proj" in self else (self.q_proj, self.k_proj, self.v_proj)

    def _heads(self, owed: Owed) -> Owed:
        """``[batch, length, heads·dim] -> [batch, heads, length, dim]``, and the scale to match."""
        y, s = owed
        y = split_heads(y, self.head_dim)
        return y, None if s is None else s[:, None]

    def _qk_norm(self, qk: mx.array, s: mx.array | None) -> mx.array:
        """QK-norm without its gain, of products that are still owed ``s``: it cancels, ε becomes ε/s² (§4.1)."""
        assert self.qk_norm_eps is not None
        return settled(qk, fold.inverse_rms(qk, fold.cancelled_eps(self.qk_norm_eps, s)))

    def _launched_qkv(self, y: mx.array, positions: rope.Positions) -> QKV:
        """QK-norm and RoPE by MLX's kernels. All of y is normed, v with it, for a slice would be copied first."""
        assert self.qk_norm_eps is not None
        heads = y.reshape(*y.shape[:2], -1, self.head_dim)
        q, k = (mx.fast.rms_norm(heads, norm["weight"], self.qk_norm_eps) for norm in (self.q_norm, self.k_norm))
        rotated = self.num_heads + self.num_kv_heads
        parts = q[:, :, : self.num_heads], k[:, :, self.num_heads : rotated], heads[:, :, rotated:]
        q, k, v = (part.transpose(0, 2, 1, 3) for part in parts)
        return positions.launch(q), positions.launch(k), v

    def _qk_gain(self) -> mx.array:
        """The gains of q_norm and k_norm, a head each: ``[heads, 1, head_dim]``."""
        q, k = self.q_norm["weight"], self.k_norm["weight"]
        heads = [mx.broadcast_to(g, (n, 1, g.size)) for g, n in ((q, self.num_heads), (k, self.num_kv_heads))]
        return mx.concatenate(heads).astype(mx.float32)


def softcapped_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, softcap: float, mask: mx.array | None
) -> mx.array:
    """``softmax(cap · tanh(q kᵀ · scale / cap)) v``; ``q [batch, heads, length, dim]``, ``mask [..., length, keys]``.

    ``mask`` says which keys are seen; there is one at least. The heads of q share those of k and v in turn.
    """
    batch, heads, length, dim = q.shape
    q = (q * scale).reshape(batch, k.shape[1], -1, length, dim)
    scores = softcap * mx.tanh(q @ k[:, :, None].swapaxes(-1, -2) / softcap)
    if mask is not None:
        mask = mask[:, :, None] if mask.ndim == 4 else mask
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    p = mx.softmax(scores, axis=-1, precise=True)
    return (p @ v[:, :, None]).reshape(batch, heads, length, -1)


class Gain(nn.Module):
    """The gain of a norm whose scale is computed elsewhere: a bare ``weight [dims]``."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
