"""Attention whose queries, keys and values are all normed: the scale of the norm in front cancels altogether (§4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .. import fold
from ..kernels.attend import Heads
from .attention import Gain, Norm
from .heads import attended, split_heads
from .linear import stack_into
from .norm import settled, weightless_norm
from .rope import Positions, Rotation


class KV(NamedTuple):
    """What a layer attends to: keys and values ``[batch, kv_heads, length, head_dim]``, and the cache that has them."""

    keys: mx.array
    values: mx.array
    cache: Any


class QKVNormAttention(nn.Module):
    """``softmax(q kᵀ) v`` with q, k, v normed over each head's ``head_dim``; v without a gain.

    The first norm's scale s multiplies nothing at all here, for all that it would multiply is normed once more. It
    makes ε of the second norm ε/s² (:func:`..fold.cancelled_eps`), which is exact. Without s, some tiny number would
    have to stand for ε. That is off by about ε/2 over the mean square of a head's product, s included: nothing to
    speak of as a rule, but a residual or a head that is small would be blown up where ε holds it down. And s is one
    number a token, which a kernel that reads all of h has at no cost.

    Args:
        rotation: the RoPE of q and k.
        eps: of the three norms.
        window: a token sees so many, itself included; None: all.
        shares: it has queries only, and attends to what an earlier layer does.
        k_eq_v: the keys' projection gives the values too.
    """

    needs_mask_array = False

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        rotation: Rotation,
        eps: float,
        *,
        window: int | None = None,
        shares: bool = False,
        k_eq_v: bool = False,
    ) -> None:
        super().__init__()
        head_dim = rotation.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotation, self.eps, self.window = rotation, eps, window
        self.shares, self.k_eq_v = shares, k_eq_v
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.q_norm = Gain(head_dim)
        if not shares:
            self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
            self.k_norm = Gain(head_dim)
            if not k_eq_v:
                self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def qkv(self, norm: Norm, h: mx.array, positions: Positions) -> tuple[mx.array, ...]:
        """Norm → project → norm of each head → RoPE: ``[batch, heads, length, head_dim]`` each; q alone if it shares.

        Gains of q_norm and k_norm go into RoPE's tables (§4.2). Where nothing is owed, MLX's kernels do it.
        """
        y, s = norm(h, *self.qkv_layers)
        if s is None:
            return self._launched(y.reshape(*y.shape[:2], -1, self.head_dim), positions)
        y = split_heads(y, self.head_dim)
        y = self._normed(y, s)
        rotated = self.num_heads if self.shares else self.num_heads + self.num_kv_heads
        tables = self.rotation.with_gain(positions.tables, self._gain().astype(mx.float32)[:, None])
        qk = self.rotation.rotate(y[:, :rotated], tables)
        return (qk,) if self.shares else (qk[:, : self.num_heads], qk[:, self.num_heads :], y[:, -self.num_kv_heads :])

    def _launched(self, heads: mx.array, positions: Positions) -> tuple[mx.array, ...]:
        """Norms and RoPE by MLX's kernels, each for all heads at once; ``heads [batch, length, heads, head_dim]``.

        In this layout, for MLX would copy transposed heads in front of its norm.
        """
        if self.shares:
            q = mx.fast.rms_norm(heads, self.q_norm["weight"], self.eps)
            return (positions.rotate(q.transpose(0, 2, 1, 3), None),)
        y = weightless_norm(heads, self.eps)
        rotated = self.num_heads + self.num_kv_heads
        qk = y[:, :, :rotated] * (self["_joint_gain"] if "_joint_gain" in self else self._gain())
        qk = positions.rotate(qk.transpose(0, 2, 1, 3), None)
        v = y[:, :, -self.num_kv_heads :].transpose(0, 2, 1, 3)
        return qk[:, : self.num_heads], qk[:, self.num_heads :], v

    def remember(self, k: mx.array, v: mx.array, cache: Any) -> KV:
        """The new keys and values behind those of the cache."""
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        return KV(k, v, cache)

    def attend(self, q: mx.array, kv: KV, mask: Any) -> mx.array:
        """``softmax(q kᵀ) v``: ``[batch, length, heads·dim]``."""
        return attended(q, kv.keys, kv.values, mask, kv.cache, 1.0)

    def pack(self) -> None:
        """Lay q, k and v out as one matrix, where their formats allow it, and the gains of their heads in a row."""
        if self.shares:
            return
        if "q_proj" in self:
            stack_into(self, "qkv_proj", self._projections)
        self._joint_gain = self._gain()

    @property
    def qkv_layers(self) -> tuple[nn.Module, ...]:
        return (self.qkv_proj,) if "qkv_proj" in self else tuple(self[name] for name in self._projections)

    @property
    def _projections(self) -> tuple[str, ...]:
        return tuple(name for name in ("q_proj", "k_proj", "v_proj") if name in self)

    def _normed(self, y: mx.array, s: mx.array) -> mx.array:
        """The heads' norms without gains, of products that are still owed ``s``: it cancels, ε becomes ε/s² (§4.1)."""
        return settled(y, fold.inverse_rms(y, fold.cancelled_eps(self.eps, s[:, None])))

    def _gain(self) -> mx.array:
        """The gains of q_norm and k_norm, a head each: ``[heads, head_dim]``."""
        gains = [(self.q_norm["weight"], self.num_heads)]
        if not self.shares:
            gains.append((self.k_norm["weight"], self.num_kv_heads))
        return mx.concatenate([mx.broadcast_to(g, (n, g.size)) for g, n in gains])

    @property
    def heads(self) -> Heads:
        """What the kernel needs to know."""
        return Heads(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            scale=1.0,
            rotary_dims=self.rotation.dims,
            traditional=self.rotation.traditional,
            qk_norm_eps=self.eps,
            window=self.window,
            v_norm=True,
            k_eq_v=self.k_eq_v,
            shares=self.shares,
        )

    @property
    def qk_gains(self) -> mx.array:
        """q_norm's and then k_norm's, for the kernel; q_norm's alone if it shares."""
        norms = (self.q_norm,) if self.shares else (self.q_norm, self.k_norm)
        return mx.concatenate([norm["weight"] for norm in norms]).astype(mx.float32)
