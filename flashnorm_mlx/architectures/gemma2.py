"""Gemma 2: norms on both sides of attention and MLP, and soft caps on scores and logits."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Fold
from . import gemma
from .base import Decoder
from .block import Block, Names, attention_and_mlp

NAMES = Names(
    attention_norm="input_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

_ATTENTION, _MLP, _HEAD = gemma.FOLDS
_POST = "a post-norm, which feeds the residual alone; computed where the residual is read next"

FOLDS = (
    _ATTENTION,
    Fold("model.layers.{i}.post_attention_layernorm", plus_one=True, instead=_POST),
    Fold("model.layers.{i}.pre_feedforward_layernorm", into=_MLP.into, plus_one=True, scale=_MLP.scale),
    Fold("model.layers.{i}.post_feedforward_layernorm", plus_one=True, instead=_POST),
    _HEAD,
)

TINY = gemma.TINY | {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 20,
}


@dataclass(kw_only=True)
class Config(gemma.Config):
    """gemma2's config.json. ``sliding_window`` is not read: mlx-lm attends to everything in all layers."""

    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float = 50.0
    query_pre_attn_scalar: float = 144.0

    @property
    def activation(self) -> str:
        return "gelu_pytorch_tanh"


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        parts = attention_and_mlp(
            self.args,
            self.rotation(index),
            scale=self.args.query_pre_attn_scalar**-0.5,
            softcap=self.args.attn_logit_softcapping,
        )
        return Block(*parts, self.norm, NAMES, self.post_norm)
