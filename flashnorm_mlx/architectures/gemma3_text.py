"""Gemma 3, text: Gemma 2's norms with a QK-norm in place of the soft caps, and local layers between global ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..layers.rope import rope_type
from ..plan import Fold
from . import gemma, gemma2, qwen3
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail, refuse

_QK_NORM = "fused into RoPE's tables"

FOLDS = (
    replace(gemma2.FOLDS[0], scale=qwen3.FOLDS[0].scale),
    Fold("model.layers.{i}.self_attn.q_norm", plus_one=True, instead=_QK_NORM),
    Fold("model.layers.{i}.self_attn.k_norm", plus_one=True, instead=_QK_NORM),
    *gemma2.FOLDS[1:],
)

#: What else transformers' model offers, at the values that the published ones have.
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
}

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

    Local layers' RoPE has the base ``rope_local_base_freq`` and is never scaled. transformers ≥ 5 writes
    ``layer_types``, and ``rope_parameters`` of each type, instead.
    """

    ROPE_TYPES = ("default", "linear", "llama3")

    num_key_value_heads: int | None = 1
    head_dim: int | None = 256
    rope_theta: float = 1000000.0
    rope_local_base_freq: float = 10000.0
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 512
    sliding_window_pattern: int = 6
    final_logit_softcapping: float | None = None

    WINDOWS = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        refuse(raw, "gemma3_text", FIXED)
        return super().from_dict(_from_layer_types(raw))

    def check_layer_types(self) -> None:
        kinds = self.layer_types
        if kinds is not None and (
            len(kinds) != self.num_hidden_layers
            or any(kind != ("full_attention", "sliding_attention")[self.is_local(i)] for i, kind in enumerate(kinds))
        ):
            fail(
                "layer_types must be full_attention where the layer's number, from 1, is a multiple of "
                f"{self.sliding_window_pattern}, and sliding_attention in all others"
            )

    def for_stock(self) -> dict[str, Any]:
        names = ("rope_local_base_freq", "sliding_window_pattern")
        return super().for_stock() | {name: getattr(self, name) for name in names}

    @property
    def logit_cap(self) -> float | None:
        return self.final_logit_softcapping

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
            window=self.args.window(index),
        )
        return Block(*parts, self.norm, gemma2.NAMES, self.post_norm)


def _from_layer_types(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that transformers ≥ 5 writes, as the older ones that stand for the same."""
    out, kinds, nested = dict(raw), raw.get("layer_types"), raw.get("rope_parameters")
    if raw.get("sliding_window_pattern") is None:
        out["sliding_window_pattern"] = raw.get("_sliding_window_pattern")
        if isinstance(kinds, list) and kinds:
            out["sliding_window_pattern"] = [*kinds, "full_attention"].index("full_attention") + 1
    if isinstance(nested, Mapping) and any(isinstance(value, Mapping) for value in nested.values()):
        rope = {kind: nested.get(kind) for kind in ("full_attention", "sliding_attention")}
        for kind, entry in rope.items():
            if not isinstance(entry, Mapping):
                fail(f"rope_parameters: {kind} is missing, or is no object")
        local = rope["sliding_attention"] or {}
        if rope_type(local) != "default":
            fail(f"rope_parameters: sliding_attention is of type {rope_type(local)!r}; only default is supported")
        bases = [b for b in (raw.get("rope_local_base_freq"), local.get("rope_theta")) if b is not None]
        if bases and bases[0] != bases[-1]:
            fail("rope_local_base_freq is not the rope_theta of sliding_attention in rope_parameters; remove one")
        out["rope_local_base_freq"] = bases[0] if bases else None
        out["rope_parameters"] = rope["full_attention"]
    return out
