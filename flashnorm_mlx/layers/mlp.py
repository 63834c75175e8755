"""The gated MLP: one of the block's five operations, ``gate_up``, and the projection of another, ``down_proj``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from .attention import Norm
from .linear import stack_into

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "gelu": nn.gelu,
    "relu": nn.relu,
    "relu2": nn.relu2,
}


def gated(gate: mx.array, up: mx.array, scale: mx.array | None, activation: str = "silu") -> mx.array:
    """``activation(gate·s) ⊙ (up·s)``, in up's dtype; ``scale`` is what a norm still owes, ``[..., 1]``, or None."""
    form = _gated(activation) if scale is None else _gated_scaled(activation)
    return form(gate, up) if scale is None else form(gate, up, scale)


@cache
def _gated(activation: str) -> Callable[..., mx.array]:
    activate = ACTIVATIONS[activation]
    return mx.compile(lambda gate, up: activate(gate) * up, shapeless=True)


@cache
def _gated_scaled(activation: str) -> Callable[..., mx.array]:
    activate = ACTIVATIONS[activation]
    return mx.compile(lambda gate, up, scale: (activate(gate * scale) * (up * scale)).astype(up.dtype), shapeless=True)


class GatedMLP(nn.Module):
    """``(activation(g) ⊙ u) Wdᵀ`` with ``g, u`` the gate and up projections of the normed ``h``.

    Args:
        fused: the checkpoint holds gate and up as one ``gate_up_proj``.
    """

    gated = True

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        if fused:
            self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=bias)
        else:
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
            self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def gate_up(self, norm: Norm, h: mx.array) -> mx.array:
        """Norm → project → gated activation: ``[batch, length, intermediate_size]``.

        The scale is owed to gate *inside* the activation and to up; both get it here. (Pushing up's past the product
        to down's output saves nothing in one kernel, and overflows float16 at a residual RMS of 300.)
        """
        y, s = norm(h, *self.gate_up_layers)
        return gated_halves(y, s, self.activation)

    def pack(self) -> None:
        """Lay gate and up out as one matrix, where their formats allow it."""
        if "gate_proj" in self:
            stack_into(self, "gate_up_proj", ("gate_proj", "up_proj"))

    @property
    def gate_up_layers(self) -> tuple[nn.Module, ...]:
        return (self.gate_up_proj,) if "gate_up_proj" in self else (self.gate_proj, self.up_proj)


def gated_halves(y: mx.array, scale: mx.array | None, activation: str) -> mx.array:
    """:func:`gated` of a gate stacked on an up projection, ``[..., 2·dims] -> [..., dims]``."""
    gate, up = mx.split(y, 2, axis=-1)
    return gated(gate, up, scale, activation)
