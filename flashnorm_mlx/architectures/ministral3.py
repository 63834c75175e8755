"""Ministral 3: Llama's block, with queries that grow with the logarithm of their position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import mlx.core as mx

from ..kernels.attend import Heads
from ..layers import attention, rope
from ..layers.norm import settled
from . import llama
from .base import Decoder
from .block import Block, attention_and_mlp
from .values import fail, is_number

FOLDS = (
    replace(llama.FOLDS[0], scale="deferred: into RoPE's tables (q, k; q has its own), behind the product (v)"),
    *llama.FOLDS[1:],
)

TINY = llama.TINY | {
    "model_type": "ministral3",
    "head_dim": 24,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.4,
    },
}


@dataclass(kw_only=True)
class Config(llama.Config):
    """ministral3's config.json, whose ``rope_parameters`` have the scale of queries besides RoPE's numbers."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        nested = raw.get("rope_parameters")
        if not isinstance(nested, Mapping):
            fail(f"rope_parameters must be an object, not {nested!r}")
        if raw.get("rope_scaling") not in (None, nested):
            fail("rope_scaling is not rope_parameters; remove it")
        return super().from_dict({**raw, "rope_scaling": nested})

    def for_stock(self) -> dict[str, Any]:
        return {
            "tie_word_embeddings": self.tie_word_embeddings,
            "head_dim": self.head_size,
            "rope_parameters": {**self.parameters, "rope_theta": self.rope_theta},
            "rope_scaling": None,
        }

    def is_local(self, index: int) -> bool:
        """Every layer, where there is a ``sliding_window`` and ``layer_types`` says nothing else."""
        return self.layer_types is None or super().is_local(index)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.rope_scaling or {}

    @property
    def query_scale(self) -> tuple[float, float]:
        """β, and the positions after which queries grow by a further step."""
        return self.parameters["llama_4_scaling_beta"], self.parameters["original_max_position_embeddings"]

    def check(self) -> None:
        for key, least in (("llama_4_scaling_beta", 0), ("original_max_position_embeddings", 1)):
            value: Any = self.parameters.get(key)
            if not (is_number(value) and value >= least):
                fail(f"rope_parameters: {key} must be a number from {least} on, not {value!r}")
        for key in ("attention_bias", "mlp_bias"):
            if getattr(self, key):
                fail(f"{key} is not supported for ministral3")
        super().check()


@dataclass(frozen=True)
class ScaledPositions(rope.Positions):
    """Positions whose queries have tables of their own: ``1 + β · ln(1 + floor(position / original))`` times the keys'.

    Left padding stands below 0; it counts as 0.
    """

    beta: float
    original: float

    @cached_property
    def query_tables(self) -> rope.Tables:
        offset = self.offset
        if isinstance(offset, mx.array) and offset.ndim:
            offset = offset[:, None, None, None]
        position = mx.maximum(offset + mx.arange(self.length)[:, None], 0)
        scale = 1 + self.beta * mx.log(1 + mx.floor(position / self.original))
        c, s = self.tables
        return c * scale, s * scale

    @cached_property
    def arrays(self) -> list[mx.array]:
        return [*super().arrays, *self.query_tables]

    def with_arrays(self, arrays: list[mx.array]) -> rope.Positions:
        made = super().with_arrays(arrays)
        vars(made)["query_tables"] = tuple(arrays[3:])
        return made


class Attention(attention.Attention):
    """Grouped-query attention; the scale of the queries is in their RoPE tables, as is what the norm owes (§3)."""

    def __init__(self, *sizes: Any, growth: tuple[float, float], **options: Any) -> None:
        super().__init__(*sizes, **options)
        self._growth = growth

    @property
    def heads(self) -> Heads:
        return replace(super().heads, growth=self._growth)

    def qkv(self, norm: attention.Norm, h: mx.array, positions: rope.Positions) -> attention.QKV:
        """Norm → project → RoPE and scale: ``[batch, heads, length, head_dim]`` each."""
        assert isinstance(positions, ScaledPositions)
        y, s = self._heads(norm(h, *self.qkv_layers))
        q, k, v = mx.split(y, (self.num_heads, self.num_heads + self.num_kv_heads), axis=1)
        return self.rotation.rotate(q, positions.query_tables, s), positions.rotate(k, s), settled(v, s)


class Model(Decoder):
    FOLDS = FOLDS
    args: Config

    def block(self, index: int) -> Block:
        beta, _ = growth = self.args.query_scale
        options: dict[str, Any] = {"form": Attention, "growth": growth} if beta > 0 else {}
        parts = attention_and_mlp(self.args, self.rotation(index), window=self.args.window(index), **options)
        return Block(*parts, self.norm)

    @property
    def positions(self) -> Callable[..., rope.Positions]:
        beta, original = self.args.query_scale
        return partial(ScaledPositions, beta=beta, original=original)
