"""Gemma (1): Llama's block with gains of 1 + w, a GELU gate and scaled embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from . import config as base
from . import llama
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail

FOLDS = tuple(replace(fold, plus_one=True) for fold in llama.FOLDS)

TINY = llama.TINY | {
    "model_type": "gemma",
    "head_dim": 24,
    "rms_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


@dataclass(kw_only=True)
class Config(base.Config):
    """gemma's config.json. Whatever GELU it names, the erf one is computed, as mlx-lm does; heads are always tied."""

    ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")
    ROPE_TYPES: ClassVar[tuple[str, ...]] = ("default",)

    hidden_act: str = "gelu"
    attention_bias: bool = False

    def check(self) -> None:
        super().check()
        self.check_tied()
        if self.attention_bias:
            fail(f"attention_bias is not supported for {self.model_type}")

    def check_tied(self) -> None:
        if not self.tie_word_embeddings:
            fail(f"tie_word_embeddings is false; {self.model_type}'s head is its embedding table")

    @property
    def activation(self) -> str:
        return "gelu"

    @property
    def embedding_factor(self) -> float:
        return float(self.hidden_size**0.5)


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        return Block(*attention_and_mlp(self.args, self.rotation(index)), self.norm)
