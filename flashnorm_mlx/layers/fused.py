"""A block as five launches: the same five operations, each by its kernel.

The layers' weights move into buffers that the kernels read (:mod:`~flashnorm_mlx.kernels.packed`); the layers keep
views of them, for prompts and for whatever the kernels don't cover.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..kernels.attend import Heads, attend
from ..kernels.choice import fastest
from ..kernels.packed import Packed, Uncovered, pack
from ..kernels.project import project
from .attention import Attention
from .mlp import GatedMLP, gated
from .norm import settled


class Projection:
    """``residual + activation(norm(x) Wᵀ)``: in one launch of its kernel, or in plain operations if those are faster.

    Args:
        norm: the layer in front; None: none. How its arm works it says itself, see ``fused`` in :mod:`.norm`.
        activation: of a gate that is stacked on an up projection.
        adds: whether there is a residual; only measurements ask.
    """

    def __init__(
        self,
        layer: nn.Module,
        dtype: mx.Dtype,
        norm: nn.Module | None = None,
        *,
        activation: str | None = None,
        adds: bool = False,
    ) -> None:
        prepare, gain, eps = norm.fused() if norm is not None else (None, None, None)
        self.layer, self.norm, self.activation, self.adds = layer, norm, activation, adds
        self.prepare: Callable[[mx.array], mx.array] | None = prepare
        self.eps: float | None = eps
        self.packed: Packed = pack(layer, dtype, gain)
        self.weight = layer["weight"]
        self.plain_for: set[int] = set()

    def __call__(self, x: mx.array, rows: int, residual: mx.array | None = None, x_offset: int = 0) -> mx.array:
        """``x``, read from ``x_offset`` on as ``[rows, in]`` -> ``[rows, out]``."""
        form = self.plain if rows in self.plain_for else self.kernel
        return form(x, rows, residual, x_offset)

    def kernel(self, x: mx.array, rows: int, residual: mx.array | None, x_offset: int) -> mx.array:
        if self.prepare is not None:
            x = self.prepare(x)
        return project(
            x,
            self.packed,
            rows=rows,
            eps=self.eps,
            activation=self.activation,
            residual=residual,
            x_offset=x_offset,
        )

    def plain(self, x: mx.array, rows: int, residual: mx.array | None, x_offset: int) -> mx.array:
        size = rows * self.packed.columns
        x = x.flatten()[x_offset : x_offset + size].reshape(rows, -1)
        y, s = (self.layer(x), None) if self.norm is None else self.norm(x, self.layer)
        y = settled(y, s) if self.activation is None else gated(y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :], s)
        return y if residual is None else residual + y

    def choose(self, rows: int) -> None:
        """Find out which form is faster for so many rows.

        Raises:
            RuntimeError: if neither works.
        """
        w = self.packed
        weights = f"{w.bits}-bit in groups of {w.group_size}" if w.bits < 16 else "not quantised"
        dtype = str(w.dtype).removeprefix("mlx.core.")
        operation = f"project {w.rows} x {w.columns}, {weights}, {dtype}, {rows} row{'s' * (rows > 1)}"
        for word, applies in (
            ("behind rms_norm", self.prepare is not None),
            ("normed", self.eps is not None),
            ("with gain", w.gain),
            ("with bias", w.bias),
            ("gated", self.activation is not None),
            ("added", self.adds),
        ):
            operation += f", {word}" * applies
        x = mx.ones((rows, w.columns), w.dtype)
        residual = mx.ones((rows, w.rows), w.dtype) if self.adds else None
        forms = {
            "kernel": lambda x, residual: self.kernel(x, rows, residual, 0),
            "plain": lambda x, residual: self.plain(x, rows, residual, 0),
        }
        if fastest(operation, forms, x, residual) == "plain":
            self.plain_for.add(rows)


class FusedBlock:
    """A decoder block on few new tokens.

    Raises:
        Uncovered: if a kernel doesn't cover one of the layers.
    """

    def __init__(
        self, attention: Attention, mlp: GatedMLP, attention_norm: nn.Module, mlp_norm: nn.Module, dtype: mx.Dtype
    ) -> None:
        if "qkv_proj" not in attention or "gate_up_proj" not in mlp:
            raise Uncovered("q, k and v (or gate and up) in different formats")
        self.qkv = Projection(attention.qkv_proj, dtype, attention_norm)
        self.o = Projection(attention.o_proj, dtype, adds=True)
        self.gate_up = Projection(mlp.gate_up_proj, dtype, mlp_norm, activation="silu")
        self.down = Projection(mlp.down_proj, dtype, adds=True)
        self.heads = Heads(
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
            scale=attention.head_dim**-0.5,
            rotary_dims=attention.head_dim,
            qk_norm_eps=attention.qk_norm_eps,
        )
        self.projections = (self.qkv, self.o, self.gate_up, self.down)
        self.places = ((attention, "qkv_proj"), (attention, "o_proj"), (mlp, "gate_up_proj"), (mlp, "down_proj"))
        self.heads.check()
        self.gains: mx.array | None = None
        if attention.qk_norm_eps is not None:
            self.gains = mx.concatenate([attention.q_norm["weight"], attention.k_norm["weight"]]).astype(mx.float32)

    def is_stale(self) -> bool:
        """Whether one of the layers is no longer where it was, or has other weights."""
        return any(
            owner.get(name) is not p.layer or p.layer["weight"] is not p.weight
            for p, (owner, name) in zip(self.projections, self.places, strict=True)
        )

    def __call__(
        self, h: mx.array, kv: mx.array, tail: mx.array, step: mx.array, *, batch: int, length: int
    ) -> tuple[mx.array, mx.array]:
        """``[rows, hidden]``, the cache and its tail -> ``[rows, hidden]`` and the new tail."""
        rows = batch * length
        qkv = self.qkv(h, rows)
        a, tail, start = attend(qkv, kv, tail, step, self.heads, gains=self.gains, batch=batch, length=length)
        h = self.o(a, rows, residual=h, x_offset=start)
        f = self.gate_up(h, rows)
        return self.down(f, rows, residual=h), tail
