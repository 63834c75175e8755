"""Qwen2 and Qwen2.5, dense: Llama's block with biases on q, k and v, in front of which the scale must stand."""

from __future__ import annotations

from dataclasses import dataclass

from . import config as base
from . import llama
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail

FOLDS = llama.FOLDS

TINY = llama.TINY | {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}


@dataclass(kw_only=True)
class Config(base.Config):
    """qwen2's config.json."""

    use_sliding_window: bool = False

    def check(self) -> None:
        super().check()
        if self.use_sliding_window:
            fail("use_sliding_window is not supported for qwen2")


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        return Block(*attention_and_mlp(self.args, self.rotation(index), qkv_bias=True), self.norm)
