"""A block on many tokens, on a GPU: the vendor's matrix products, and little between them.

What a block adds to the residual last, the next block adds, in the launch of its norm. On few tokens this does not pay:
there handing a launch over takes longer than the launch, and that of a kernel of our own takes longest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..kernels import choice
from ..kernels.prompt import add_norm, covers, gate
from .attention import Attention
from .linear import bias_of, products
from .mlp import GatedMLP, gated
from .norm import Owed
from .rope import Positions

#: From so many tokens on, the device takes longer than the host.
MANY = 1024


JOINS: dict[str, choice.Form] = {
    "kernel": lambda x, residual: add_norm(x, residual, 1e-5)[1],  # type: ignore[arg-type]
    "plain": lambda x, residual: mx.fast.rms_norm(x + residual, None, 1e-5),  # type: ignore[operator]
}
GATES: dict[str, choice.Form] = {
    "kernel": lambda x, residual: gate(x, "silu"),
    "plain": lambda x, residual: gated(*mx.split(x, 2, axis=-1), None),
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
        dtype: mx.Dtype,
        *,
        measure: bool,
    ) -> None:
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self.joins = _pays("add, norm", attention.o_proj["weight"].shape[0], dtype, JOINS, measure)
        self.gates = _pays("gate", mlp.gate_up_proj["weight"].shape[0] // 2, dtype, GATES, measure)

    def __call__(self, h: mx.array | Sum, positions: Positions, mask: Any = None, cache: Any = None) -> Sum:
        h, x = self.joined(h, self.attention_norm)
        a = self.attention.attend(self.attention.qkv(as_it_is, x, positions), mask, cache)
        h, x = self.joined(Sum(h, self.attention.o_proj(a)), self.mlp_norm)
        return Sum(h, self.mlp.down_proj(self.gated(as_it_is(x, self.mlp.gate_up_proj)[0])))

    def joined(self, h: mx.array | Sum, norm: nn.Module) -> tuple[mx.array, mx.array]:
        """The residual, and what the projections behind ``norm`` read."""
        explicit = norm.explicit()
        if explicit is not None and self.joins and isinstance(h, Sum):
            return add_norm(h.h, h.due, explicit[1], explicit[0])
        h = whole(h)
        return h, h if explicit is None else mx.fast.rms_norm(h, *explicit)

    def gated(self, y: mx.array) -> mx.array:
        return GATES["kernel" if self.gates else "plain"](y, None)


def whole(h: mx.array | Sum) -> mx.array:
    return h.h + h.due if isinstance(h, Sum) else h


def as_it_is(x: mx.array, *layers: nn.Module) -> Owed:
    """In the place of a norm whose work is done."""
    y, bias = products(layers, x), bias_of(layers)
    return (y if bias is None else y + bias), None


def _pays(name: str, dims: int, dtype: mx.Dtype, forms: dict[str, choice.Form], measure: bool) -> bool:
    """Whether the kernel is to be used, for rows of ``dims`` numbers."""
    if not measure or not covers(dims, dtype):
        return covers(dims, dtype)
    residual = mx.ones((2 * MANY, dims), dtype) if forms is JOINS else None
    x = mx.ones((2 * MANY, dims if forms is JOINS else 2 * dims), dtype)
    kind = str(dtype).removeprefix("mlx.core.")
    return choice.fastest(f"{name} of {dims}, {kind}, {2 * MANY} rows", forms, x, residual) == "kernel"
