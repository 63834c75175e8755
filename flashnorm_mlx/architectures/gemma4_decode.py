"""Gemma 4's block by kernels, where layers have inputs of their own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..layers.fused import FusedBlock, Pending, Projection, Residual


class FusedInputBlock(FusedBlock):
    """A decoder block, and then ``h + norm((gelu(h Wgᵀ) ⊙ p) Wᵀ)`` with the layer's own input ``p``: seven launches."""

    def __init__(self, layer: Any, *, dtype: mx.Dtype, pending: Pending | None) -> None:
        super().__init__(*layer.parts, dtype=dtype, pending=pending)
        self.gate = Projection(
            layer.per_layer_input_gate,
            dtype,
            activation="gelu_pytorch_tanh",
            gated=False,
            pending=Pending(layer.post_feedforward_layernorm),
        )
        self.projection = Projection(layer.per_layer_projection, dtype)
        self.projections += (self.gate, self.projection)

    def __call__(
        self, h: Residual, kv: mx.array, tail: mx.array, step: mx.array, *, batch: int, length: int
    ) -> tuple[Residual, mx.array]:
        h, tail = super().__call__(h, kv, tail, step, batch=batch, length=length)
        rows = batch * length
        (own,), *others = h.inputs
        p, h = self.gate.normed(h._replace(inputs=others), rows, times=own)
        return self.projection.added(p, h, rows), tail
