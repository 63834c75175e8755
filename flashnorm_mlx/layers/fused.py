"""A block as five launches: the same five operations, each by its kernel.

The layers' weights move into buffers that the kernels read (:mod:`~flashnorm_mlx.kernels.packed`); the layers keep
views of them, for prompts and for whatever the kernels don't cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..kernels.attend import attend
from ..kernels.choice import fastest
from ..kernels.packed import Packed, Uncovered, pack
from ..kernels.project import covers_whole, project
from .attention import Attention
from .mlp import ACTIVATIONS, GatedMLP, gated_halves
from .norm import Fusion, PostNorm, add_clipped, settled


class Residual(NamedTuple):
    """The residual ``[rows, hidden]``, behind the first ``start`` elements of ``x``."""

    x: mx.array
    start: int = 0
    #: A projection that is to be added to it, once its post-norm is done.
    due: mx.array | None = None
    #: What the layers from here on have as their own inputs, ``rows · dims`` numbers each.
    inputs: Sequence[tuple[mx.array, ...]] = ()


class Pending(NamedTuple):
    """``(h + norm(p)) · factor``, which the consumer does in its prologue."""

    norm: PostNorm
    factor: mx.array | None = None

    def __call__(self, h: mx.array, p: mx.array) -> mx.array:
        h = add_clipped(h, self.norm(p))
        return h if self.factor is None else (h * self.factor).astype(h.dtype)


class Projection:
    """``residual + activation(norm(x) Wᵀ) ⊙ times``: in one launch of its kernel, or plainly if that is faster.

    Args:
        norm: the layer in front; None: none. How its arm works it says itself, see ``fused`` in :mod:`.norm`.
        activation: of a gate that is stacked on an up projection.
        gated: False: there is no gate, and the activation is the projection's own.
        adds: whether what the layer yields is added to the residual at once, without a post-norm.
        pending: a post-norm that is done here, before ``norm``.
    """

    def __init__(
        self,
        layer: nn.Module,
        dtype: mx.Dtype,
        norm: nn.Module | None = None,
        *,
        activation: str | None = None,
        gated: bool = True,
        adds: bool = False,
        pending: Pending | None = None,
    ) -> None:
        fusion = norm.fused() if norm is not None else Fusion()
        self.layer, self.norm, self.adds, self.pending = layer, norm, adds, pending
        self.activation, self.gated = activation, gated
        self.prepare, self.eps, self.centred = fusion.prepare, fusion.eps, fusion.centred
        post = (None, None) if pending is None or self.prepare else (pending.norm["weight"], pending.factor)
        self.packed: Packed = pack(layer, dtype, fusion.gain, *post, norm_bias=fusion.bias)
        if (self.packed.post_gain or self.centred) and not covers_whole(self.packed):
            what = "mean" if self.centred else "post-norm"
            raise Uncovered(f"a {what} of {self.packed.columns} numbers next to {self.packed.bits}-bit weights")
        self.plain_for: set[int] = set()

    def normed(
        self, h: Residual, rows: int, softcap: float | None = None, times: mx.array | None = None
    ) -> tuple[mx.array, Residual]:
        """Of the residual: ``[rows, out]``, and the residual with what was due to it."""
        if self.pending is None or h.due is None:
            return self(h.x, rows, x_offset=h.start, softcap=softcap, times=times), h
        if self.packed.post_gain and rows not in self.plain_for:
            y = self.kernel(h.x, rows, None, h.start, softcap, times, h.due)
            return y, Residual(y, y.size - h.due.size, inputs=h.inputs)
        x = h.x.flatten()[h.start : h.start + h.due.size].reshape(rows, -1)
        whole = self.pending(x, h.due)
        return self(whole, rows, softcap=softcap, times=times), Residual(whole, inputs=h.inputs)

    def added(self, x: mx.array, h: Residual, rows: int, x_offset: int = 0) -> Residual:
        """The residual with what the layer makes of ``x`` added, or due."""
        if self.adds:
            return h._replace(x=self(x, rows, h.x, x_offset), start=0)
        return h._replace(due=self(x, rows, None, x_offset))

    def __call__(
        self,
        x: mx.array,
        rows: int,
        residual: mx.array | None = None,
        x_offset: int = 0,
        softcap: float | None = None,
        times: mx.array | None = None,
    ) -> mx.array:
        """``x``, read from ``x_offset`` on as ``[rows, in]`` -> ``[rows, out]``."""
        form = self.plain if rows in self.plain_for else self.kernel
        return form(x, rows, residual, x_offset, softcap, times)

    def kernel(
        self,
        x: mx.array,
        rows: int,
        residual: mx.array | None,
        x_offset: int = 0,
        softcap: float | None = None,
        times: mx.array | None = None,
        due: mx.array | None = None,
    ) -> mx.array:
        if self.prepare is not None:
            x = self.prepare(x)
        return project(
            x,
            self.packed,
            rows=rows,
            eps=self.eps,
            centred=self.centred,
            activation=self.activation,
            gated=self.gated,
            softcap=softcap,
            times=times,
            residual=residual,
            pending=due,
            post_eps=None if due is None or self.pending is None else self.pending.norm.eps,
            x_offset=x_offset,
        )

    def plain(
        self,
        x: mx.array,
        rows: int,
        residual: mx.array | None,
        x_offset: int = 0,
        softcap: float | None = None,
        times: mx.array | None = None,
    ) -> mx.array:
        size = rows * self.packed.columns
        x = x.flatten()[x_offset : x_offset + size].reshape(rows, -1)
        y, s = (self.layer(x), None) if self.norm is None else self.norm(x, self.layer)
        if self.activation is None:
            y = settled(y, s)
        elif self.gated:
            y = gated_halves(y, s, self.activation)
        else:
            y = ACTIVATIONS[self.activation](settled(y, s))
        y = y if softcap is None else softcap * mx.tanh(y / softcap)
        y = y if times is None else y * times.reshape(y.shape)
        return (y if residual is None else residual + y).astype(x.dtype)  # a bias in float32 has promoted it

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
            ("behind an explicit norm", self.prepare is not None),
            ("normed", self.eps is not None),
            ("around its mean", self.centred),
            ("with gain", w.gain),
            ("with bias", w.bias),
            ("behind a post-norm", w.post_gain),
            (f"{'gated by' if self.gated else 'through'} {self.activation}", self.activation is not None),
            ("added", self.adds),
        ):
            operation += f", {word}" * applies
        x = mx.ones((rows, w.columns), w.dtype)
        residual = mx.ones((rows, w.rows), w.dtype) if self.adds else None
        due, pending = (x, self.pending) if w.post_gain else (None, None)

        def kernel(x: mx.array, residual: mx.array | None) -> mx.array:
            y = self.kernel(x, rows, residual, due=due)
            return y if due is None else y[: y.size - due.size].reshape(rows, -1)  # what was normed is behind it

        def plain(x: mx.array, residual: mx.array | None) -> mx.array:
            return self.plain(x if pending is None else pending(x, x), rows, residual)

        forms = {"kernel": kernel, "plain": plain}
        if fastest(operation, forms, x, residual) == "plain":
            self.plain_for.add(rows)


class FusedBlock:
    """A decoder block on few new tokens.

    Args:
        dtype: of the activations.
        pending: what the block before leaves to be done here.

    Raises:
        Uncovered: if a kernel doesn't cover one of the layers.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: GatedMLP,
        attention_norm: nn.Module | None,
        mlp_norm: nn.Module | None,
        attention_post_norm: PostNorm | None,
        mlp_post_norm: PostNorm | None,
        *,
        dtype: mx.Dtype,
        pending: Pending | None,
    ) -> None:
        if len(attention.qkv_layers) > 1 or len(mlp.gate_up_layers) > 1:
            raise Uncovered("q, k and v (or gate and up) in different formats")
        self.heads = attention.heads
        self.heads.check()
        (qkv,), (gate_up,) = attention.qkv_layers, mlp.gate_up_layers
        awaited = None if attention_post_norm is None else Pending(attention_post_norm)
        self.qkv = Projection(qkv, dtype, attention_norm, pending=pending)
        self.o = Projection(attention.o_proj, dtype, adds=awaited is None)
        self.gate_up = Projection(gate_up, dtype, mlp_norm, activation=mlp.activation, gated=mlp.gated, pending=awaited)
        self.down = Projection(mlp.down_proj, dtype, adds=mlp_post_norm is None)
        self.projections: tuple[Projection, ...] = (self.qkv, self.o, self.gate_up, self.down)
        self.rotation = attention.rotation
        self.gains = attention.qk_gains
        if self.gains is not None:
            mx.eval(self.gains)  # what is not there yet when a step is traced is computed in every step

    def __call__(
        self, h: Residual, kv: mx.array, tail: mx.array, step: mx.array, *, batch: int, length: int
    ) -> tuple[Residual, mx.array]:
        """``[rows, hidden]``, the cache and its tail -> ``[rows, hidden]`` and the new tail."""
        rows = batch * length
        qkv, h = self.qkv.normed(h, rows)
        a, tail, start = attend(qkv, kv, tail, step, self.heads, gains=self.gains, batch=batch, length=length)
        h = self.o.added(a, h, rows, x_offset=start)
        f, h = self.gate_up.normed(h, rows)
        return self.down.added(f, h, rows), tail
