"""Qwen3, dense: Llama's block with a QK-norm, which cancels the scale of the norm in front of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..plan import Fold
from . import config as base
from . import llama
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail

_ATTENTION, _MLP, _HEAD = llama.FOLDS

FOLDS = (
    replace(_ATTENTION, scale="cancelled by the QK-norm with ε/s² (q, k), behind the product (v)"),
    Fold("model.layers.{i}.self_attn.q_norm", instead="fused into RoPE's tables"),
    Fold("model.layers.{i}.self_attn.k_norm", instead="fused into RoPE's tables"),
    _MLP,
    _HEAD,
)

TINY = llama.TINY | {
    "model_type": "qwen3",
    "head_dim": 24,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}


@dataclass(kw_only=True)
class Config(base.Config):
    """qwen3's config.json."""

    attention_bias: bool = False
    use_sliding_window: bool = False

    def check(self) -> None:
        super().check()
        if self.use_sliding_window:
            fail("use_sliding_window is not supported for qwen3")


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        bias = self.args.attention_bias
        parts = attention_and_mlp(self.args, self.rotation(index), qkv_bias=bias, o_bias=bias, qk_norm=True)
        return Block(*parts, self.norm)
