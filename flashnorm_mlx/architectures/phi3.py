"""Phi-3, 3.5 and 4: Llama's block with stacked projections, partial RoPE, and LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..layers.rope import LONGROPE, rope_type
from ..plan import Fold
from . import config as base
from . import llama
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail, is_number

_ATTENTION, _MLP, _HEAD = llama.FOLDS

FOLDS: tuple[Fold, ...] = (
    replace(_ATTENTION, into=("model.layers.{i}.self_attn.qkv_proj",)),
    replace(_MLP, into=("model.layers.{i}.mlp.gate_up_proj",)),
    _HEAD,
)

TINY = llama.TINY | {
    "model_type": "phi3",
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 4.0, 8.0, 11.0],
    },
}

#: Where a file may have them besides the top level.
_NESTED = ("partial_rotary_factor", "original_max_position_embeddings")


@dataclass(kw_only=True)
class Config(base.Config):
    """phi3's config.json. With a ``sliding_window`` all layers see that (mlx-lm's see everything).

    A LongRoPE has its long factors at every length, as in mlx-lm; transformers has the short ones in short contexts.
    """

    WINDOWS = True
    ROPE_TYPES = ("default", "linear", *LONGROPE)
    PARTIAL_ROPE = True

    tie_word_embeddings: bool = False
    original_max_position_embeddings: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        out = dict(raw)
        for key in _NESTED:
            inner = [raw[at] for at in ("rope_scaling", "rope_parameters") if isinstance(raw.get(at), Mapping)]
            given = [place[key] for place in (raw, *inner) if place.get(key) is not None]
            if any(value != given[0] for value in given):
                fail(f"{key} is {' and '.join(map(repr, given))}; remove one")
            out[key] = given[0] if given else None
        return super().from_dict(out)

    def for_stock(self) -> dict[str, Any]:
        """Stock mlx-lm asks for ``type`` and ``long_factor`` whatever the type, and for a ``factor`` with a point."""
        scaling = self.rope_scaling
        if (kind := rope_type(scaling)) == "default":
            scaling = None
        elif scaling is not None:
            number = {"factor": float(scaling["factor"])} if kind == "linear" else {}
            scaling = {"long_factor": None, "short_factor": None, **scaling, "type": kind, **number}
        return {
            "tie_word_embeddings": self.tie_word_embeddings,
            "num_key_value_heads": self.kv_heads,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "partial_rotary_factor": self.partial_rotary_factor,
            **(self.trained if kind in LONGROPE else {}),
        }

    @property
    def trained(self) -> dict[str, int | None]:
        """How many positions a context has, and had before it was made longer."""
        keys = ("max_position_embeddings", "original_max_position_embeddings")
        return {key: getattr(self, key) for key in keys}

    def is_local(self, index: int) -> bool:
        return self.layer_types is None or super().is_local(index)

    @property
    def stock_has_windows(self) -> bool:
        return False

    @property
    def rotary_dims(self) -> int:
        return int(self.head_size * self.partial_rotary_factor)

    def rope(self, index: int) -> tuple[int, float, dict | None]:
        return self.rotary_dims, self.rope_theta, self.rope_scaling and {**self.rope_scaling, **self.trained}

    def check(self) -> None:
        super().check()
        heads = self.num_attention_heads
        if self.hidden_size % heads or self.head_size != self.hidden_size // heads:
            fail(f"head_dim {self.head_size} is not hidden_size {self.hidden_size} / num_attention_heads {heads}")
        self.check_rotated(self.rotary_dims)
        if rope_type(self.rope_scaling) in LONGROPE:
            self._check_longrope(self.rope_scaling or {})

    def _check_longrope(self, scaling: Mapping[str, Any]) -> None:
        pairs = self.rotary_dims // 2
        for key in ("short_factor", "long_factor"):
            factors = scaling.get(key)
            if not isinstance(factors, list) or not all(is_number(f) and f > 0 for f in factors):
                fail(f"rope_scaling: {key} must be a list of positive numbers, not {factors!r}")
            elif len(factors) != pairs:
                fail(f"rope_scaling: {key} has {len(factors)} entries for {pairs} rotated pairs")
        for key, value in self.trained.items():
            if value is None or value < 2:
                fail(f"{key} must be an integer from 2 on, not {value!r}, where rope_scaling is a longrope")
        for key in ("attention_factor", "short_mscale", "long_mscale"):
            if scaling.get(key) is not None:
                fail(f"rope_scaling: {key} is not supported for phi3")


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        window = self.args.window(index)
        return Block(*attention_and_mlp(self.args, self.rotation(index), fused=True, window=window), self.norm)
