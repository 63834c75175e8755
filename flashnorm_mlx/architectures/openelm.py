"""OpenELM: Llama's block with a QK-norm, of heads and widths that differ from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from ..layers.attention import Attention as BaseAttention
from ..layers.mlp import GatedMLP
from ..layers.rope import Rotation
from ..plan import Fold
from . import config as base
from .base import Decoder
from .block import Block, Names
from .values import fail, is_number, refuse

_LAYER = "transformer.layers.{i}"
_QK_NORM = "fused into RoPE's tables"

FOLDS = (
    Fold(
        f"{_LAYER}.attn_norm",
        into=(f"{_LAYER}.attn.qkv_proj",),
        scale="cancelled by the QK-norm with ε/s² (q, k), behind the product (v)",
    ),
    Fold(f"{_LAYER}.attn.q_norm", instead=_QK_NORM),
    Fold(f"{_LAYER}.attn.k_norm", instead=_QK_NORM),
    Fold(
        f"{_LAYER}.ffn_norm",
        into=(f"{_LAYER}.ffn.proj_1",),
        scale="deferred: behind the product, inside the activation",
    ),
    Fold("transformer.norm", into=("lm_head",), scale="deferred: onto the logits"),
)

NAMES = Names(attention="attn", mlp="ffn", attention_norm="attn_norm", mlp_norm="ffn_norm")

TINY = {
    "model_type": "openelm",
    "head_dim": 24,
    "num_transformer_layers": 3,
    "model_dim": 96,
    "vocab_size": 331,
    "ffn_dim_divisor": 32,
    "num_query_heads": [4, 4, 6],
    "num_kv_heads": [1, 2, 2],
    "ffn_multipliers": [0.5, 1.3, 2.1],
    "share_input_output_layers": False,
    "rope_freq_constant": 10000,
}

#: This file's keys, as the base has them.
_KEYS = {
    "model_dim": "hidden_size",
    "num_transformer_layers": "num_hidden_layers",
    "rope_freq_constant": "rope_theta",
    "share_input_output_layers": "tie_word_embeddings",
}


@dataclass(kw_only=True)
class Config(base.Config):
    """openelm's config.json, whose lists have an entry for each layer."""

    ROPE_TYPES = ("default",)

    head_dim: int
    ffn_dim_divisor: int
    num_query_heads: list
    num_kv_heads: list
    ffn_multipliers: list
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    ffn_with_glu: bool = True
    normalize_qk_projections: bool = True
    # each layer has its own
    intermediate_size: int = 1
    num_attention_heads: int = 1

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        refuse(raw, "openelm", {"activation_fn_name": "swish", "normalization_layer_name": "rms_norm"})
        tied = {"share_input_output_layers": True} if raw.get("share_input_output_layers") is None else {}
        renamed = {_KEYS.get(key, key): value for key, value in {**raw, **tied}.items() if key not in _KEYS.values()}
        try:
            return super().from_dict({**renamed, "arm": raw.get("arm"), "compute_dtype": raw.get("compute_dtype")})
        except base.FlashNormError as error:
            raise base.FlashNormError(_in_own_words(str(error))) from None

    @property
    def cache_width_of_all(self) -> int:
        return 2 * self.head_size * sum(map(int, self.num_kv_heads))

    def for_stock(self) -> dict[str, Any]:
        return {"share_input_output_layers": self.tie_word_embeddings}

    def check(self) -> None:
        for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers"):
            entries = getattr(self, key)
            if len(entries) != self.num_hidden_layers:
                fail(f"{key} has {len(entries)} entries for {self.num_hidden_layers} layers")
            whole = key != "ffn_multipliers"
            if not all(is_number(n) and n > 0 and (n == int(n) or not whole) for n in entries):
                fail(f"{key} must be a list of positive {'integers' if whole else 'numbers'}")
        for i, (heads, kv_heads) in enumerate(zip(self.num_query_heads, self.num_kv_heads, strict=True)):
            if heads % kv_heads:
                fail(f"num_query_heads {heads} is not a multiple of num_kv_heads {kv_heads} in layer {i}")
        if not self.ffn_with_glu:
            fail("ffn_with_glu is false, which is not supported")
        super().check()

    def width(self, index: int) -> int:
        """A layer's MLP width: the multiple of ``ffn_dim_divisor`` that is next to ``multiplier · model_dim``.

        It is never below nine tenths of that product.
        """
        wanted, divisor = self.ffn_multipliers[index] * self.hidden_size, self.ffn_dim_divisor
        width = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
        return width + divisor if width < 0.9 * wanted else width


class Attention(BaseAttention):
    """With the output projection under its name here."""

    def __init__(self, hidden_size: int, heads: int, kv_heads: int, rotation: Rotation, eps: float | None) -> None:
        super().__init__(hidden_size, heads, kv_heads, rotation, fused=True, qk_norm_eps=eps)
        self.out_proj = self.pop("o_proj")

    @property
    def o_proj(self) -> nn.Linear:  # type: ignore[override]
        return self.out_proj


class MLP(GatedMLP):
    """With both projections under their names here."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size, intermediate_size, fused=True)
        self.proj_1, self.proj_2 = self.pop("gate_up_proj"), self.pop("down_proj")

    @property
    def gate_up_layers(self) -> tuple[nn.Module, ...]:
        return (self.proj_1,)

    @property
    def down_proj(self) -> nn.Linear:  # type: ignore[override]
        return self.proj_2


class Model(Decoder):
    FOLDS = FOLDS
    STACK = "transformer"
    EMBEDDING = "token_embeddings"
    args: Config

    def block(self, index: int) -> Block:
        args = self.args
        eps = args.rms_norm_eps if args.normalize_qk_projections else None
        heads, kv_heads = int(args.num_query_heads[index]), int(args.num_kv_heads[index])
        attention = Attention(args.hidden_size, heads, kv_heads, self.rotation(index), eps)
        return Block(attention, MLP(args.hidden_size, args.width(index)), self.norm, NAMES)


def _in_own_words(error: str) -> str:
    """A message about the base's keys, with the keys of this file."""
    for own, name in _KEYS.items():
        error = error.replace(f"{name} ", f"{own} ")
    return error
