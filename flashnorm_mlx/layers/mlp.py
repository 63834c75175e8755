"""The gated MLP: two of the block's five operations, ``gate_up`` and ``project_add``."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .linear import stack_into


@partial(mx.compile, shapeless=True)
def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


@partial(mx.compile, shapeless=True)
def _gated_scaled(gate: mx.array, up: mx.array, scale: mx.array) -> mx.array:
    """``silu(gate·s) ⊙ (up·s)``, in up's dtype."""
    return (nn.silu(gate * scale) * (up * scale)).astype(up.dtype)


def gated(gate: mx.array, up: mx.array, scale: mx.array | None) -> mx.array:
    """``silu(gate·s) ⊙ (up·s)``; ``scale`` is what a norm still owes to both, ``[..., 1]``, or None."""
    return _gated(gate, up) if scale is None else _gated_scaled(gate, up, scale)


class GatedMLP(nn.Module):
    """``h + (silu(g) ⊙ u) Wdᵀ`` with ``g, u`` the gate and up projections of the normed ``h``."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def gate_up(self, norm: nn.Module, h: mx.array) -> mx.array:
        """Norm → project → gated activation: ``[batch, length, intermediate_size]``.

        The scale is owed to gate *inside* the activation and to up; both get it here. (Pushing up's past the product
        to down's output saves nothing in one kernel, and overflows float16 at a residual RMS of 300.)
        """
        y, s = norm(h, *self._gate_up_layers())
        gate, up = mx.split(y, 2, axis=-1)
        return gated(gate, up, s)

    def project_add(self, f: mx.array, h: mx.array) -> mx.array:
        """``h + f Wdᵀ``: the down projection, plus the residual."""
        return h + self.down_proj(f)

    def pack(self) -> None:
        """Lay gate and up out as one matrix, where their formats allow it."""
        stack_into(self, "gate_up_proj", ("gate_proj", "up_proj"))

    def _gate_up_layers(self) -> tuple[nn.Module, ...]:
        return (self.gate_up_proj,) if "gate_up_proj" in self else (self.gate_proj, self.up_proj)
