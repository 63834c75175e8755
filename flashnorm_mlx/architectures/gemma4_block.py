"""Gemma 4's block, and what the layers of one kind share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..kernels.packed import Uncovered
from ..layers.fused import FusedBlock, Pending
from ..layers.mlp import GatedMLP, gated
from ..layers.norm import PostNorm
from ..layers.qkv_norm import KV, QKVNormAttention
from ..layers.rope import Positions
from ..layers.routed import RoutedMLP, Router
from . import block, gemma2
from .block import Norm, add
from .gemma4_config import Config
from .gemma4_decode import FusedInputBlock


@dataclass
class Seen:
    """What the layers of one kind attend to in a pass: the newest of them that does not share left it."""

    mask: Any
    kv: KV | None = None


class Block(block.Block):
    """Gemma 2's, with a third part where layers have inputs of their own, times a scalar.

    The norm behind the MLP would cancel the scale that ``up`` is owed, too. It is applied all the same: in float16 the
    products overflow without it, and the gate needs it anyway.
    """

    def __init__(
        self,
        args: Config,
        attention: QKVNormAttention,
        mlp: GatedMLP,
        norm: Norm,
        post_norm: Callable[[], PostNorm],
    ) -> None:
        super().__init__(attention, mlp, norm, gemma2.NAMES, post_norm)  # type: ignore[arg-type]
        self.layer_scalar = mx.ones((1,))
        if args.enable_moe_block:
            assert args.num_experts and args.top_k_experts and args.moe_intermediate_size
            self.router = Router(args.hidden_size, args.num_experts, args.top_k_experts, norm())
            self.experts = RoutedMLP(args.hidden_size, args.moe_intermediate_size, args.num_experts, args.activation)
            self.pre_feedforward_layernorm_2 = norm()
            self.post_feedforward_layernorm_1 = post_norm()
            self.post_feedforward_layernorm_2 = post_norm()
        if args.hidden_size_per_layer_input:
            self.per_layer_input_gate = nn.Linear(args.hidden_size, args.hidden_size_per_layer_input, bias=False)
            self.per_layer_projection = nn.Linear(args.hidden_size_per_layer_input, args.hidden_size, bias=False)
            self.post_per_layer_input_norm = post_norm()

    def __call__(
        self,
        h: mx.array,
        positions: Positions,
        mask: Any = None,
        cache: Any = None,
        per_layer: mx.array | None = None,
    ) -> mx.array:
        h, qkv = self.before(h, positions)
        return self.behind(h, self.attend(qkv, mask, cache), per_layer)

    def attend(self, qkv: tuple[mx.array, ...], mask: Any, cache: Any) -> mx.array:
        """``mask``: a :class:`Seen`."""
        attention: Any = self.self_attn
        q, *new = qkv
        if new:
            mask.kv = attention.remember(*new, cache)
        return attention.attend(q, mask.kv, mask.mask)

    def behind(self, h: mx.array, a: mx.array, per_layer: mx.array | None = None) -> mx.array:
        """``per_layer [batch, length, hidden_size_per_layer_input]``: what the layer has besides."""
        h = add(h, self.self_attn.o_proj(a), self.post_attention_layernorm)
        h = add(h, self.feed_forward(h), self.post_feedforward_layernorm)
        if per_layer is not None:
            h = add(h, self.layer_input(h, per_layer), self.post_per_layer_input_norm)
        return h * self.layer_scalar

    def feed_forward(self, h: mx.array) -> mx.array:
        """The MLP, or the sum of MLP and experts, each normed."""
        y = self.mlp.down_proj(self.mlp.gate_up(self.pre_feedforward_layernorm, h))
        if "experts" not in self:
            return y
        routed = self.experts(self.pre_feedforward_layernorm_2, h, self.router(h))
        return self.post_feedforward_layernorm_1(y) + self.post_feedforward_layernorm_2(routed)

    def layer_input(self, h: mx.array, p: mx.array) -> mx.array:
        """``(gelu(h Wgᵀ) ⊙ p) Wᵀ``: the layer's own input ``p``, gated by the residual."""
        return self.per_layer_projection(gated(self.per_layer_input_gate(h), p, None, "gelu_pytorch_tanh"))

    def fused(self, dtype: mx.Dtype, pending: Pending | None) -> FusedBlock:
        if "experts" in self:
            raise Uncovered("routed experts")
        return FusedInputBlock(self, dtype=dtype, pending=pending) if self.has_input else super().fused(dtype, pending)

    def prompt(self, dtype: mx.Dtype, *, measure: bool) -> nn.Module:
        return self

    @property
    def pending(self) -> Pending:
        norm = self.post_per_layer_input_norm if self.has_input else self.post_feedforward_layernorm
        return Pending(norm, self.layer_scalar)

    @property
    def launches(self) -> int:
        return 7 if self.has_input else 5

    @property
    def has_input(self) -> bool:
        """Whether the layer has an input of its own."""
        return "per_layer_input_gate" in self
