"""Gemma 2: norms on both sides of attention and MLP, and soft caps on scores and logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..plan import Fold
from . import gemma
from .base import Decoder
from .block import Block, Names, attention_and_mlp
from .values import refuse

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

#: What a file that doesn't have the key means by it; null means something else.
ABSENT: dict[str, Any] = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}

TINY = gemma.TINY | {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 20,
}


@dataclass(kw_only=True)
class Config(gemma.Config):
    """gemma2's config.json. Every other layer sees a window, from the first on (in mlx-lm all see everything).

    A soft cap of null is none, and one that isn't there 50 or 30.
    """

    WINDOWS = True

    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    query_pre_attn_scalar: float = 144.0
    sliding_window: int = 4096

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        refuse(raw, "gemma2", {"hidden_activation": "gelu_pytorch_tanh"})
        return super().from_dict({**ABSENT, **raw})

    def is_local(self, index: int) -> bool:
        return index % 2 == 0 if self.layer_types is None else super().is_local(index)

    @property
    def stock_has_windows(self) -> bool:
        return False

    @property
    def logit_cap(self) -> float | None:
        return self.final_logit_softcapping

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
            window=self.args.window(index),
        )
        return Block(*parts, self.norm, NAMES, self.post_norm)
