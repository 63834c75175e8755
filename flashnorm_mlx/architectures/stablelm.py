"""StableLM: LayerNorm, partial RoPE, optional biases on q, k and v, QK-norms and a parallel residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from ..kernels.attend import Heads, attend
from ..layers import attention, heads, rope
from ..layers.fused import FusedBlock, Pending, Residual
from ..layers.layernorm import HeadLayerNorm
from ..layers.mlp import GatedMLP
from ..layers.norm import settled
from ..plan import Fold, Writer
from . import layernorm
from .block import Block, Names
from .values import fail

_LAYER_NORM: dict[str, Any] = {"parameters": ("weight", "bias"), "centres": True}
_QKV = tuple(f"model.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")
_MLP = ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj")

FOLDS = (
    Fold(
        "model.layers.{i}.input_layernorm",
        into=_QKV,
        scale="deferred: behind the product, in front of the bias",
        **_LAYER_NORM,
    ),
    Fold(
        "model.layers.{i}.post_attention_layernorm",
        into=_MLP,
        scale="deferred: behind the product, in front of the bias",
        **_LAYER_NORM,
    ),
    Fold("model.norm", into=("lm_head",), scale="deferred: onto the logits, in front of their bias", **_LAYER_NORM),
)

#: Each head has its own gain. Behind a projection with a bias, which folding makes of every one, no scale cancels.
QK_NORMS = tuple(
    Fold(f"model.layers.{{i}}.self_attn.{x}_layernorm", instead="stays, a LayerNorm for each head", parameters=())
    for x in "qk"
)

WRITERS = (
    Writer("model.embed_tokens", is_table=True),
    Writer("model.layers.{i}.self_attn.o_proj"),
    Writer("model.layers.{i}.mlp.down_proj"),
)

TINY = {
    "model_type": "stablelm",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "layer_norm_eps": 1e-5,
    "vocab_size": 331,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": True,
    "tie_word_embeddings": False,
}


@dataclass(kw_only=True)
class Config(layernorm.Config):
    """stablelm's config.json."""

    KEYS: ClassVar[dict[str, str]] = {"rms_norm_eps": "layer_norm_eps"}
    PARTIAL_ROPE = True

    partial_rotary_factor: float = 0.25
    tie_word_embeddings: bool = False
    use_qkv_bias: bool = False
    use_parallel_residual: bool = False
    qk_layernorm: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        nested = raw.get("rope_parameters")
        inner = nested.get("partial_rotary_factor") if isinstance(nested, Mapping) else None
        given = [f for f in (raw.get("partial_rotary_factor"), inner) if f is not None]
        if not given:
            fail("partial_rotary_factor is missing (at the top level and in rope_parameters)")
        if given[0] != given[-1]:
            fail(f"partial_rotary_factor is {' and '.join(map(repr, given))}; remove one")
        return super().from_dict({**raw, "partial_rotary_factor": given[0]})

    @property
    def rotary_dims(self) -> int:
        return int(self.partial_rotary_factor * self.head_size)

    def for_stock(self) -> dict[str, Any]:
        return {
            "num_key_value_heads": self.kv_heads,
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
            "use_qkv_bias": self.use_qkv_bias,
        }

    def check(self) -> None:
        super().check()
        if self.hidden_act != "silu":
            fail(f"hidden_act {self.hidden_act!r} is not supported for stablelm (silu is)")
        self.check_rotated(self.rotary_dims)
        if self.tie_word_embeddings:
            fail("tie_word_embeddings is not supported for stablelm")


class Attention(attention.Attention):
    """Grouped-query attention with RoPE on a part of each head, computed in float32."""

    def __init__(self, args: Config, rotation: rope.Rotation) -> None:
        kv_heads, head_dim = args.kv_heads, args.head_size
        super().__init__(args.hidden_size, args.num_attention_heads, kv_heads, rotation, qkv_bias=args.use_qkv_bias)
        if args.qk_layernorm:
            self.q_layernorm = HeadLayerNorm(args.num_attention_heads, head_dim, args.rms_norm_eps)
            self.k_layernorm = HeadLayerNorm(kv_heads, head_dim, args.rms_norm_eps)

    def qkv(self, norm: attention.Norm, h: mx.array, positions: rope.Positions) -> attention.QKV:
        """Norm → project → QK-norm → RoPE: ``[batch, heads, length, head_dim]`` each."""
        y = heads.split_heads(settled(*norm(h, *self.qkv_layers)), self.head_dim)
        q, k, v = mx.split(y, (self.num_heads, self.num_heads + self.num_kv_heads), axis=1)
        if "q_layernorm" in self:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        return positions.launch(q), positions.launch(k), v

    @property
    def heads(self) -> Heads:
        if "q_layernorm" not in self:
            return super().heads
        return replace(super().heads, qk_norm_eps=self.q_layernorm.eps, qk_norm="layer")

    @property
    def qk_gains(self) -> mx.array | None:
        if "q_layernorm" not in self:
            return None
        return mx.concatenate([self.q_layernorm.gains, self.k_layernorm.gains]).astype(mx.float32)

    def attend(self, qkv: attention.QKV, mask: Any, cache: Any) -> mx.array:
        """``softmax(q kᵀ / sqrt(head_dim)) v``, q and k in float32: their products can overflow float16."""
        q, k, v = qkv
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        if isinstance(k, mx.array):  # a quantised cache's are packed
            q, k = q.astype(mx.float32), k.astype(mx.float32)
        a = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.head_dim**-0.5, mask=mask)
        a = a.transpose(0, 2, 1, 3).astype(qkv[2].dtype)
        return a.reshape(*a.shape[:2], -1)


class ParallelBlock(Block):
    """Attention and MLP behind one norm: ``h + attention(norm(h)) + mlp(norm(h))``."""

    def behind(self, h: mx.array, a: mx.array) -> mx.array:
        attention, mlp, norm, *_ = self.parts
        return h + attention.o_proj(a) + mlp.down_proj(mlp.gate_up(norm, h))

    def fused(self, dtype: mx.Dtype, pending: Pending | None) -> FusedBlock:
        parts = self.parts
        return FusedParallelBlock(*parts._replace(mlp_norm=parts.attention_norm), dtype=dtype, pending=pending)

    def prompt(self, dtype: mx.Dtype, *, measure: bool) -> nn.Module:
        return self


class FusedParallelBlock(FusedBlock):
    """The same by kernels, in as many launches."""

    def __call__(
        self, h: Residual, kv: mx.array, tail: mx.array, step: mx.array, *, batch: int, length: int
    ) -> tuple[Residual, mx.array]:
        rows = batch * length
        qkv, f = self.qkv(h.x, rows), self.gate_up(h.x, rows)
        a, tail, start = attend(qkv, kv, tail, step, self.heads, gains=self.gains, batch=batch, length=length)
        return self.down.added(f, self.o.added(a, h, rows, x_offset=start), rows), tail


class Model(layernorm.LayerNormDecoder):
    FOLDS = FOLDS
    WRITERS = WRITERS
    args: Config

    def block(self, index: int) -> nn.Module:
        parts = Attention(self.args, self.rotation(index)), GatedMLP(self.args.hidden_size, self.args.intermediate_size)
        if self.args.use_parallel_residual:
            return ParallelBlock(*parts, self.norm, Names(mlp_norm=None))
        return Block(*parts, self.norm)

    @property
    def folds(self) -> tuple[Fold, ...]:
        declared: tuple[Fold, ...] = self.FOLDS
        if self.args.use_parallel_residual:
            first, second, last = declared
            declared = (replace(first, into=first.into + second.into), last)
        return declared + (QK_NORMS if self.args.qk_layernorm else ())
