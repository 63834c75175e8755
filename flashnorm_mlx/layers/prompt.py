"""A block on many tokens, on a GPU: the vendor's matrix products, and little between them.

What a block adds to the residual last, the next block adds, in the launch of its norm. On few tokens this does not pay:
there handing a launch over takes longer than the launch, and that of a kernel of our own takes longest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..kernels import choice, prompt
from .attention import Attention
from .mlp import GatedMLP, gated_halves
from .norm import PostNorm, Unnormed, add_clipped, weightless_norm
from .rope import Positions

#: From so many bytes of residual on, the device takes longer than the host.
LARGE = 2**22

#: Rows that forms are compared on.
ROWS = 1024

#: Compiled, each length once, for calling a kernel on its own costs the host more than an operation of MLX's.
add_norm, gate = mx.compile(prompt.add_norm), mx.compile(prompt.gate)

JOINS: dict[str, choice.Form] = {
    "kernel": lambda x, residual: add_norm(x, residual, 1e-5)[1],  # type: ignore[arg-type]
    "plain": lambda x, residual: weightless_norm(x + residual, 1e-5),
}


class Sum(NamedTuple):
    """A residual, and what is still to be added to it."""

    h: mx.array
    due: mx.array


class PromptBlock:
    """A decoder block's equation, with each norm joined to the addition in front of it.

    Args:
        measure: use plain operations where they prove faster than a kernel, or the kernel fails.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: GatedMLP,
        attention_norm: nn.Module,
        mlp_norm: nn.Module,
        attention_post_norm: PostNorm | None,
        mlp_post_norm: PostNorm | None,
        *,
        kind: Any,
        dtype: mx.Dtype,
        measure: bool,
    ) -> None:
        self.attention, self.mlp, self.kind = attention, mlp, kind
        self.norms = attention_norm, mlp_norm, attention_post_norm, mlp_post_norm
        self.gates = _forms_of_gate(mlp.activation)
        (gate_up,) = mlp.gate_up_layers
        # the sum of a post-norm may have to be clipped, which the kernel doesn't do
        self.joins = mlp_post_norm is None and _pays(
            "add, norm", attention.o_proj["weight"].shape[0], dtype, JOINS, measure
        )
        self.by_kernel = _pays(f"gate by {mlp.activation}", gate_up["weight"].shape[0] // 2, dtype, self.gates, measure)

    def __call__(self, h: mx.array | Sum, positions: Positions, mask: Any = None, cache: Any = None) -> mx.array | Sum:
        attention, mlp = self.attention, self.mlp
        attention_norm, mlp_norm, attention_post_norm, mlp_post_norm = self.norms
        h, x = self.joined(h, attention_norm)
        a = attention.attend(attention.qkv(Unnormed(), x, positions), mask, cache)
        h, x = self.joined(due(h, attention.o_proj(a), attention_post_norm), mlp_norm)
        y, _ = Unnormed()(x, *mlp.gate_up_layers)
        f = self.gates["kernel" if self.by_kernel else "plain"](y, None)
        return due(h, mlp.down_proj(f), mlp_post_norm)

    def joined(self, h: mx.array | Sum, norm: nn.Module) -> tuple[mx.array, mx.array]:
        """The residual, and what the projections behind ``norm`` read."""
        explicit = norm.explicit()
        if explicit is not None and self.joins and isinstance(h, Sum):
            return add_norm(h.h, h.due, explicit[1], explicit[0])
        h = whole(h)
        if explicit is None:
            return h, h
        gain, eps = explicit
        return h, weightless_norm(h, eps) if gain is None else mx.fast.rms_norm(h, gain, eps)


def due(h: mx.array, p: mx.array, post_norm: PostNorm | None) -> mx.array | Sum:
    """``h + p`` as a sum that is still to be made; with a post-norm it is made at once."""
    return Sum(h, p) if post_norm is None else add_clipped(h, post_norm(p))


def whole(h: mx.array | Sum) -> mx.array:
    return h.h + h.due if isinstance(h, Sum) else h


def _pays(name: str, dims: int, dtype: mx.Dtype, forms: dict[str, choice.Form], measure: bool) -> bool:
    """Whether the kernel is to be used, for rows of ``dims`` numbers."""
    if not measure or not prompt.covers(dims, dtype):
        return prompt.covers(dims, dtype)
    residual = mx.ones((ROWS, dims), dtype) if forms is JOINS else None
    x = mx.ones((ROWS, dims if forms is JOINS else 2 * dims), dtype)
    kind = str(dtype).removeprefix("mlx.core.")
    return choice.fastest(f"{name} of {dims}, {kind}, {ROWS} rows", forms, x, residual) == "kernel"


def _forms_of_gate(activation: str) -> dict[str, choice.Form]:
    return {
        "kernel": lambda x, residual: gate(x, activation),
        "plain": lambda x, residual: gated_halves(x, None, activation),
    }
