"""OLMo 2: post-norms in place of Llama's pre-norms, and a QK-norm over all heads at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from .. import fold
from ..kernels.attend import Heads
from ..layers import attention, rope
from ..layers.norm import settled
from ..plan import Fold
from . import config as base
from . import llama
from .base import Decoder
from .block import Block, Names, attention_and_mlp

NAMES = Names(
    attention_norm=None,
    mlp_norm=None,
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

_QK_NORM = "fused into RoPE's tables, a head's share into its own"
_POST = "a post-norm, which feeds the residual alone"

FOLDS = (
    Fold("model.layers.{i}.self_attn.q_norm", instead=_QK_NORM),
    Fold("model.layers.{i}.self_attn.k_norm", instead=_QK_NORM),
    Fold("model.layers.{i}.post_attention_layernorm", instead=_POST),
    Fold("model.layers.{i}.post_feedforward_layernorm", instead=_POST),
    llama.FOLDS[-1],
)

TINY = llama.TINY | {"model_type": "olmo2", "rms_norm_eps": 1e-6, "rope_theta": 500000.0}


@dataclass(kw_only=True)
class Config(base.Config):
    """olmo2's config.json."""

    attention_bias: bool = False
    mlp_bias: bool = False


class Attention(attention.Attention):
    """Grouped-query attention whose QK-norm is over the whole width of q, and of k.

    ``q_norm.weight [heads·dim]`` and ``k_norm.weight [kv_heads·dim]``: a head has its own part of the gain, and with it
    its own tables for RoPE (§4.2). There is no norm in front whose scale could cancel.
    """

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.q_norm = attention.Gain(self.num_heads * self.head_dim)
        self.k_norm = attention.Gain(self.num_kv_heads * self.head_dim)

    @property
    def heads(self) -> Heads:
        return replace(super().heads, qk_norm="all")

    def _qk_norm(self, qk: mx.array, s: mx.array | None) -> mx.array:
        assert self.qk_norm_eps is not None
        eps = fold.cancelled_eps(self.qk_norm_eps, s)
        squares = mx.square(qk.astype(mx.float32))
        means = [mx.mean(x, axis=(1, 3), keepdims=True) for x in mx.split(squares, [self.num_heads], axis=1)]
        heads = (self.num_heads, self.num_kv_heads)
        scales = [mx.repeat(mx.rsqrt(mean + eps), n, axis=1) for mean, n in zip(means, heads, strict=True)]
        return settled(qk, mx.concatenate(scales, axis=1))

    def _launched_qkv(self, y: mx.array, positions: rope.Positions) -> attention.QKV:
        assert self.qk_norm_eps is not None
        widths = self.num_heads * self.head_dim, (self.num_heads + self.num_kv_heads) * self.head_dim
        q, k, v = mx.split(y, widths, axis=-1)
        q = mx.fast.rms_norm(q, self.q_norm["weight"], self.qk_norm_eps)
        k = mx.fast.rms_norm(k, self.k_norm["weight"], self.qk_norm_eps)
        q, k, v = (self._heads((x, None))[0] for x in (q, k, v))
        return positions.launch(q), positions.launch(k), v

    def _qk_gain(self) -> mx.array:
        gain = mx.concatenate([self.q_norm["weight"], self.k_norm["weight"]])
        return gain.reshape(-1, 1, self.head_dim).astype(mx.float32)


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        bias = self.args.attention_bias
        parts = attention_and_mlp(
            self.args,
            self.rotation(index),
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=self.args.mlp_bias,
            qk_norm=True,
            form=Attention,
        )
        return Block(*parts, self.norm, NAMES, self.post_norm)
