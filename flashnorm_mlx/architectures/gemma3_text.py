"""Gemma 3, text: Gemma 2's norms with a QK-norm in place of the soft caps, and local layers between global ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..plan import Fold
from . import gemma, gemma2, qwen3
from .base import Decoder, attention_and_mlp
from .block import Block

_QK_NORM = "fused into RoPE's tables"

FOLDS = (
    replace(gemma2.FOLDS[0], scale=qwen3.FOLDS[0].scale),
    Fold("model.layers.{i}.self_attn.q_norm", plus_one=True, instead=_QK_NORM),
    Fold("model.layers.{i}.self_attn.k_norm", plus_one=True, instead=_QK_NORM),
    *gemma2.FOLDS[1:],
)

TINY = gemma.TINY | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 20,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 6,
    "sliding_window_pattern": 3,
}


@dataclass(kw_only=True)
class Config(gemma.Config):
    """gemma3_text's config.json: every ``sliding_window_pattern``-th layer is global, the others see a window.

    Local layers' RoPE has the base ``rope_local_base_freq`` and is never scaled.
    """

    ROPE_TYPES = ("default", "linear", "llama3")

    num_key_value_heads: int | None = 1
    head_dim: int | None = 256
    rope_theta: float = 1000000.0
    rope_local_base_freq: float = 10000.0
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 512
    sliding_window_pattern: int = 6

    @property
    def activation(self) -> str:
        return "gelu_pytorch_tanh"

    @property
    def embedding_factor(self) -> float:
        """√d as bfloat16 holds it."""
        return float(np.array(mx.array(self.hidden_size**0.5, mx.bfloat16).astype(mx.float32)))

    def is_local(self, index: int) -> bool:
        return (index + 1) % self.sliding_window_pattern != 0

    def rope(self, index: int) -> tuple[int, float, dict | None]:
        if self.is_local(index):
            return self.head_size, self.rope_local_base_freq, None
        return super().rope(index)

    def check_tied(self) -> None:
        """Files may hold a head of their own; mlx-lm looks for it."""


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        parts = attention_and_mlp(
            self.args,
            self.rotation(index),
            qk_norm=True,
            scale=self.args.query_pre_attn_scalar**-0.5,
            window=self.args.sliding_window if self.args.is_local(index) else None,
        )
        return Block(*parts, self.norm, gemma2.NAMES, self.post_norm)
