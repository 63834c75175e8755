"""A block on many tokens, on a GPU: the vendor's matrix products, and little between them.

What a block adds to the residual last, the next block adds, in the launch of its norm.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..kernels import choice
from ..kernels.prompt import add_norm, covers, gate
from .attention import QKV, Attention
from .mlp import GatedMLP, gated_halves
from .norm import PostNorm, Unnormed, add_clipped, weightless_norm
from .rope import Positions

#: Forms are compared on so many rows, as far as these take no more memory than this.
ROWS, MEMORY = 1024, 2**18

JOINS: dict[str, choice.Form] = {
    "kernel": lambda x, residual: add_norm(x, residual, 1e-5)[1],  # type: ignore[arg-type]
    "plain": lambda x, residual: weightless_norm(x + residual, 1e-5),
}

#: A residual, or one and what is still to be added to it.
Residual = mx.array | tuple[mx.array, mx.array]


class PromptBlock(nn.Module):
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
        super().__init__()
        self.attention, self.mlp, self.kind = attention, mlp, kind
        self.attention_norm, self.attention_post_norm = attention_norm, attention_post_norm
        self.mlp_norm, self.mlp_post_norm = mlp_norm, mlp_post_norm
        (gate_up,) = mlp.gate_up_layers
        # the sum of a post-norm may have to be clipped, which the kernel doesn't do
        self.joins = mlp_post_norm is None and _pays(
            "add, norm", attention.o_proj["weight"].shape[0], dtype, JOINS, measure
        )
        gates = forms_of_gate(mlp.activation)
        by_kernel = _pays(f"gate by {mlp.activation}", gate_up["weight"].shape[0] // 2, dtype, gates, measure)
        self.gate = gates["kernel" if by_kernel else "plain"]

    def __call__(self, h: Residual, positions: Positions, mask: Any = None, cache: Any = None) -> Residual:
        h, qkv = self.before(h, positions)
        return self.behind(h, self.attend(qkv, mask, cache))

    def before(self, h: Residual, positions: Positions) -> tuple[mx.array, QKV]:
        """Up to the attention: the residual, and queries with new keys and values."""
        h, x = self.joined(h, self.attention_norm)
        return h, self.attention.qkv(Unnormed(), x, positions)

    def attend(self, qkv: QKV, mask: Any, cache: Any) -> mx.array:
        return self.attention.attend(qkv, mask, cache)

    def behind(self, h: mx.array, a: mx.array) -> Residual:
        """From the attention's output on."""
        h, x = self.joined(due(h, self.attention.o_proj(a), self.attention_post_norm), self.mlp_norm)
        y, _ = Unnormed()(x, *self.mlp.gate_up_layers)
        return due(h, self.mlp.down_proj(self.gate(y, None)), self.mlp_post_norm)

    def joined(self, h: Residual, norm: nn.Module) -> tuple[mx.array, mx.array]:
        """The residual, and what the projections behind ``norm`` read."""
        explicit = norm.explicit()
        if explicit is not None and self.joins and isinstance(h, tuple):
            gain, eps = explicit
            return add_norm(*h, eps, gain)
        h = whole(h)
        if explicit is None:
            return h, h
        gain, eps = explicit
        return h, weightless_norm(h, eps) if gain is None else mx.fast.rms_norm(h, gain, eps)


def due(h: mx.array, p: mx.array, post_norm: PostNorm | None) -> Residual:
    """``h + p`` as a sum that is still to be made; with a post-norm it is made at once."""
    return (h, p) if post_norm is None else add_clipped(h, post_norm(p))


def whole(h: Residual) -> mx.array:
    return h[0] + h[1] if isinstance(h, tuple) else h


def _pays(name: str, dims: int, dtype: mx.Dtype, forms: dict[str, choice.Form], measure: bool) -> bool:
    """Whether the kernel is to be used, for rows of ``dims`` numbers."""
    if not measure or not covers(dims, dtype):
        return covers(dims, dtype)
    width = dims if forms is JOINS else 2 * dims
    rows = min(ROWS, MEMORY // (width * dtype.size))
    residual = mx.ones((rows, dims), dtype) if forms is JOINS else None
    kind = str(dtype).removeprefix("mlx.core.")
    operation = f"{name} of {dims}, {kind}, {rows} rows"
    return choice.fastest(operation, forms, mx.ones((rows, width), dtype), residual) == "kernel"


@cache
def forms_of_gate(activation: str) -> dict[str, choice.Form]:
    return {
        "kernel": lambda x, residual: gate(x, activation),
        "plain": lambda x, residual: gated_halves(x, None, activation),
    }
