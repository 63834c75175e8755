"""OLMo (1), in AllenAI's own layout: LayerNorm without gain or bias, stacked projections, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers import attention, rope
from ..layers.layernorm import ARMS
from ..layers.mlp import gated_halves
from ..plan import Fold, Writer
from . import block, layernorm
from .values import fail, refuse

_LAYER_NORM: dict[str, Any] = {"parameters": (), "centres": True}
_BLOCK = "model.transformer.blocks.{i}"

FOLDS = (
    Fold(
        f"{_BLOCK}.att_norm",
        into=(f"{_BLOCK}.att_proj",),
        scale="deferred: into RoPE's tables (q, k), behind the product (v)",
        **_LAYER_NORM,
    ),
    Fold(
        f"{_BLOCK}.ff_norm",
        into=(f"{_BLOCK}.ff_proj",),
        scale="deferred: behind the product, inside the activation",
        **_LAYER_NORM,
    ),
    Fold(
        "model.transformer.norm", into=("model.transformer.ff_out",), scale="deferred: onto the logits", **_LAYER_NORM
    ),
)

WRITERS = (
    Writer("model.transformer.wte", is_table=True),
    Writer(f"{_BLOCK}.attn_out"),
    Writer(f"{_BLOCK}.ff_out"),
)

TINY = {
    "model_type": "olmo",
    "d_model": 96,
    "n_layers": 3,
    "n_heads": 6,
    "mlp_hidden_size": 320,
    "vocab_size": 331,
    "embedding_size": 331,
    "rope_theta": 10000.0,
    "weight_tying": False,
}

#: What else AllenAI's code offers, at the values that the published models have.
FIXED = {
    "activation_type": "swiglu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "sequential",
    "clip_qkv": None,
    "include_bias": False,
    "layer_norm_eps": 1e-5,
    "layer_norm_with_affine": False,
    "multi_query_attention": False,
    "rope": True,
    "scale_logits": False,
}


@dataclass(kw_only=True)
class Config(layernorm.Config):
    """olmo's config.json. ``mlp_hidden_size`` is of gate and up together."""

    KEYS: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "vocab_size": "embedding_size",
        "tie_word_embeddings": "weight_tying",
        "rms_norm_eps": "layer_norm_eps",
        "max_position_embeddings": "max_sequence_length",
    }

    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        if raw.get("d_model") is None and raw.get("hidden_size") is not None:
            fail("d_model is missing: this is transformers' layout of OLMo; AllenAI's own is supported")
        refuse(raw, "olmo", FIXED)
        if raw.get("layer_norm_type") not in (None, "default", "low_precision"):
            fail(f"layer_norm_type {raw['layer_norm_type']!r} is not supported for olmo (default is)")
        width, ratio = raw.get("d_model"), raw.get("mlp_ratio", 4)
        if raw.get("mlp_hidden_size") is None and isinstance(width, int) and isinstance(ratio, int):
            raw = {**raw, "mlp_hidden_size": ratio * width}
        return super().from_dict(raw)

    def for_stock(self) -> dict[str, Any]:
        return {"mlp_hidden_size": self.intermediate_size}

    def check(self) -> None:
        super().check()
        self.check_multi_head()
        if self.intermediate_size % 2:
            fail(f"intermediate_size {self.intermediate_size} is odd; it is of gate and up together")
        if self.head_size % 2:
            fail(f"hidden_size / num_attention_heads is {self.head_size}, which is odd; RoPE rotates pairs")


class Block(block.Block, attention.Attention):
    """A pre-norm block whose projections lie side by side: it is its own attention, and its own MLP.

    ``ff_proj`` holds the up projection above the gate; for decoding they are laid out in the usual order.
    """

    activation, gated, needs_mask_array = "silu", True, False
    attend = attention.Attention.attend  # type: ignore[assignment]

    def __init__(self, args: Config, rotation: rope.Rotation, norm: block.Norm) -> None:
        hidden, heads = args.hidden_size, args.num_attention_heads
        attention.Attention.__init__(self, hidden, heads, heads, rotation, fused=True)
        self.att_norm, self.ff_norm = norm(), norm()
        self.att_proj, self.attn_out = self.pop("qkv_proj"), self.pop("o_proj")
        self.ff_proj = nn.Linear(hidden, args.intermediate_size, bias=False)
        self.ff_out = nn.Linear(args.intermediate_size // 2, hidden, bias=False)

    parts = property(lambda self: block.Parts(self, self, self.att_norm, self.ff_norm, None, None))
    kind = property(lambda self: (None, self.rotation))
    qkv_layers = property(lambda self: (self.att_proj,))
    gate_up_layers = property(lambda self: (self.gate_up_proj if "gate_up_proj" in self else self.ff_proj,))
    o_proj = property(lambda self: self.attn_out)
    down_proj = property(lambda self: self.ff_out)

    def gate_up(self, norm: attention.Norm, h: mx.array) -> mx.array:
        """Norm → project → gated activation."""
        y, s = norm(h, *self.gate_up_layers)
        return gated_halves(mx.roll(y, y.shape[-1] // 2, -1) if "ff_proj" in self else y, s, self.activation)

    def pack(self) -> None:
        if "ff_proj" in self:
            layer = self.pop("ff_proj")
            for name, rows in layer.items():
                layer[name] = mx.roll(rows, len(rows) // 2, 0)
            self.gate_up_proj = layer


class Transformer(nn.Module):
    def __init__(self, args: Config, blocks: list[nn.Module], norm: block.Norm) -> None:
        super().__init__()
        self.wte = nn.Embedding(args.vocab_size, args.hidden_size)
        self.blocks = blocks
        self.norm = norm()
        if not args.tie_word_embeddings:
            self.ff_out = nn.Linear(args.hidden_size, args.vocab_size, bias=False)


class Stack(nn.Module):
    """Embeddings, blocks, final norm and head, under AllenAI's names and ours."""

    def __init__(self, args: Config, blocks: list[nn.Module], norm: block.Norm) -> None:
        super().__init__()
        self.transformer = Transformer(args, blocks, norm)

    embed_tokens = property(lambda self: self.transformer.wte)
    layers = property(lambda self: self.transformer.blocks)
    norm = property(lambda self: self.transformer.norm)


class Model(layernorm.LayerNormDecoder):
    """A tied head reads the centred table: ``x̂ (E - mean(E))ᵀ = x̂ Eᵀ``, for x̂ has mean zero and no gain or bias."""

    FOLDS = FOLDS
    WRITERS = WRITERS
    args: Config

    def __init__(self, args: Config) -> None:
        super().__init__(args)
        self.pop("lm_head", None)
        self.model: Any = Stack(args, self.model.layers, self.norm)

    def norm(self) -> nn.Module:
        return ARMS[self.args.arm](self.args.hidden_size, self.args.rms_norm_eps, affine=False)

    def block(self, index: int) -> Block:
        return Block(self.args, self.rotation(index), self.norm)

    @property
    def folds(self) -> tuple[Fold, ...]:
        *blocks, last = self.FOLDS
        return (*blocks, replace(last, into=("model.transformer.wte",)) if self.args.tie_word_embeddings else last)

    @property
    def output(self) -> nn.Module:
        transformer = self.model.transformer
        return transformer.ff_out if "ff_out" in transformer else transformer.wte

    def is_unused(self, name: str) -> bool:
        return self.args.tie_word_embeddings and name.startswith("model.transformer.ff_out.")
