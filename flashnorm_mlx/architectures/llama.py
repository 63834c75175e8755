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
    layer_types: list[str] | None = None
    sliding_window: int | None = None

    def check(self) -> None:
        super().check()
        kinds = self.layer_types or []
        if not all(isinstance(kind, str) for kind in kinds):
            base.fail("layer_types must be a list of names")
        if self.layer_types is not None and len(kinds) != self.num_hidden_layers:
            base.fail(f"layer_types has {len(kinds)} entries for {self.num_hidden_layers} layers")
        if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
            base.fail(f"layer_types has {sorted(unknown)[0]!r}; full_attention and sliding_attention are known")
        if "sliding_attention" in kinds and self.sliding_window is None:
            base.fail("sliding_window is missing, and layer_types has sliding_attention")

    def is_sliding(self, index: int) -> bool:
        return self.layer_types is not None and self.layer_types[index] == "sliding_attention"


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        bias, window = self.args.attention_bias, self.args.sliding_window if self.args.is_sliding(index) else None
        parts = attention_and_mlp(
            self.args,
            self.rotation(index),
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=self.args.mlp_bias,
            window=window,
        )
        return Block(*parts, self.norm)
