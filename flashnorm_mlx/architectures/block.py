"""The decoder block in its five operations, with the norms where a family has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers.attention import Attention
from ..layers.fused import FusedBlock, Pending
from ..layers.layernorm import LayerNorm
from ..layers.mlp import GatedMLP
from ..layers.norm import PostNorm, Unnormed, add_clipped
from ..layers.prompt import PromptBlock
from ..layers.rope import Positions, Rotation
from .config import Config

#: Makes a norm.
Norm = Callable[[], nn.Module]

#: What sets the passes of some layers apart from others': the window of their attention, and their RoPE.
Kind = tuple[int | None, Rotation]


class Names(NamedTuple):
    """What a checkpoint calls a block's parts; None: the family has no such norm. The defaults are Llama's."""

    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None


PRE_NORM = Names()


class Parts(NamedTuple):
    """A block's modules; where the family has no norm in front, it is an Unnormed, and one behind is None."""

    attention: Attention
    mlp: Any
    attention_norm: Any
    mlp_norm: Any
    attention_post_norm: PostNorm | None
    mlp_post_norm: PostNorm | None


class Block(nn.Module):
    """A decoder block.

    Args:
        norm: makes a foldable norm, in front of projections.
        post_norm: makes a norm of what is added to the residual.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norm: Norm,
        names: Names = PRE_NORM,
        post_norm: Callable[[], PostNorm] | None = None,
    ) -> None:
        super().__init__()
        self._names = names
        self[names.attention] = attention
        self[names.mlp] = mlp
        for name in (names.attention_norm, names.mlp_norm):
            if name is not None:
                self[name] = norm()
        for name in (names.attention_post_norm, names.mlp_post_norm):
            if name is not None and post_norm is not None:
                self[name] = post_norm()

    def __call__(self, h: mx.array, positions: Positions, mask: Any = None, cache: Any = None) -> mx.array:
        h, qkv = self.before(h, positions)
        return self.behind(h, self.attend(qkv, mask, cache))

    def before(self, h: mx.array, positions: Positions) -> tuple[mx.array, tuple[mx.array, ...]]:
        """Up to the attention: the residual, and queries with new keys and values."""
        parts = self.parts
        return h, parts.attention.qkv(parts.attention_norm, h, positions)

    def attend(self, qkv: tuple[mx.array, ...], mask: Any, cache: Any) -> mx.array:
        return self[self._names.attention].attend(qkv, mask, cache)

    def behind(self, h: mx.array, a: mx.array) -> mx.array:
        """From the attention's output on."""
        attention, mlp, _, mlp_norm, attention_post_norm, mlp_post_norm = self.parts
        h = add(h, attention.o_proj(a), attention_post_norm)
        f = mlp.gate_up(mlp_norm, h)
        return add(h, mlp.down_proj(f), mlp_post_norm)

    @property
    def parts(self) -> Parts:
        n = self._names
        before = [self[name] if name else Unnormed() for name in (n.attention_norm, n.mlp_norm)]
        behind = [self[name] if name else None for name in (n.attention_post_norm, n.mlp_post_norm)]
        return Parts(self[n.attention], self[n.mlp], *before, *behind)  # type: ignore[arg-type]

    @property
    def kind(self) -> Kind:
        attention = self[self._names.attention]
        return attention.window, attention.rotation

    @property
    def needs_mask_array(self) -> bool:
        needs: bool = self[self._names.attention].needs_mask_array
        return needs

    def fused(self, dtype: mx.Dtype, pending: Pending | None) -> FusedBlock:
        """The same block by kernels, for activations of ``dtype``; shares the weights.

        Args:
            pending: what the block before leaves to be done here.
        """
        return FusedBlock(*self.parts, dtype=dtype, pending=pending)

    @property
    def launches(self) -> int:
        """How many it is when it is fused."""
        return 5

    @property
    def pending(self) -> Pending | None:
        """What it leaves to the block behind it when it is fused."""
        norm = self.parts.mlp_post_norm
        return None if norm is None else Pending(norm)

    def prompt(self, dtype: mx.Dtype, *, measure: bool) -> PromptBlock | nn.Module:
        """The same block for many tokens, once it is fused."""
        if not self.parts.mlp.gated or isinstance(self.parts.attention_norm, LayerNorm):
            return self
        return PromptBlock(*self.parts, kind=self.kind, dtype=dtype, measure=measure)


def add(h: mx.array, p: mx.array, post_norm: PostNorm | None) -> mx.array:
    """``h + p``, or with a post-norm ``h + norm(p)``."""
    return h + p if post_norm is None else add_clipped(h, post_norm(p))


def attention_and_mlp(
    args: Config,
    rotation: Rotation,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    fused: bool = False,
    form: type[Attention] = Attention,
    **options: Any,
) -> tuple[Attention, GatedMLP]:
    """A block's two halves, of the sizes that the config gives; ``options`` are more of Attention's.

    Args:
        form: Attention, or a family's own.
    """
    attention = form(
        args.hidden_size,
        args.num_attention_heads,
        args.kv_heads,
        rotation,
        fused=fused,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm_eps=args.rms_norm_eps if qk_norm else None,
        **options,
    )
    mlp = GatedMLP(args.hidden_size, args.intermediate_size, activation=args.activation, bias=mlp_bias, fused=fused)
    return attention, mlp
