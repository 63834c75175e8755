"""Llama 2 and 3, Mistral, SmolLM2 and their relatives."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Fold
from . import config as base
from .base import Decoder
from .block import Block, attention_and_mlp

FOLDS = (
    Fold(
        "model.layers.{i}.input_layernorm",
        into=(
            "model.layers.{i}.self_attn.q_proj",
            "model.layers.{i}.self_attn.k_proj",
            "model.layers.{i}.self_attn.v_proj",
        ),
        scale="deferred: into RoPE's tables (q, k), behind the product (v)",
    ),
    Fold(
        "model.layers.{i}.post_attention_layernorm",
        into=("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        scale="deferred: behind the product, inside the activation",
    ),
    Fold("model.norm", into=("lm_head",), scale="deferred: onto the logits"),
)

TINY = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 331,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@dataclass(kw_only=True)
class Config(base.Config):
    """llama's config.json. ``layer_types`` names each layer ``full_attention`` or ``sliding_attention``."""

    attention_bias: bool = False
    mlp_bias: bool = False

    WINDOWS = True

    def is_local(self, index: int) -> bool:
        """Every layer of a Mistral that has ``sliding_window``, where ``layer_types`` says nothing else."""
        return self.model_type == "mistral" if self.layer_types is None else super().is_local(index)

    @property
    def stock_has_windows(self) -> bool:
        return self.layer_types is not None


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
            window=self.args.window(index),
        )
        return Block(*parts, self.norm)
