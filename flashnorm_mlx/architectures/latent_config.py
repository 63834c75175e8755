"""config.json of the families with multi-head latent attention and a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..layers import rope, yarn
from ..layers.latent import Sizes
from . import config as base
from .values import Count, fail

C = TypeVar("C", bound="Config")


@dataclass(kw_only=True)
class Config(base.Config):
    """What the families share. Layers from ``first_k_dense_replace`` on are mixtures of ``n_routed_experts``."""

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    #: Null in the file: no query latent. It must be there, for loaders differ in what they take its absence for.
    q_lora_rank: int | None = None
    attention_bias: bool = False
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: Count = 0
    num_nextn_predict_layers: Count = 0
    routed_scaling_factor: float = 1.0
    n_group: int | None = None
    topk_group: int | None = None
    rope_interleave: bool = True

    ROPE_TYPES = ("default", *rope.YARN)
    #: Keys that must be in the file, null or not.
    REQUIRED: ClassVar[tuple[str, ...]] = ("q_lora_rank",)

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any]) -> C:
        for key in cls.REQUIRED:
            if key not in raw:
                fail(f"{key} is missing")
        return super().from_dict(raw)

    def check(self) -> None:
        if self.qk_rope_head_dim % 2:
            fail(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; RoPE rotates pairs")
        self.check_multi_head()
        self.head_dim = self.qk_rope_head_dim  # what RoPE turns, as transformers has it
        super().check()
        if not self.rope_interleave:
            fail(f"rope_interleave false is not supported for {self.model_type}")
        _check_default(self.rope_scaling)
        if self.rope_theta <= 1:
            fail(f"rope_theta must be greater than 1, not {self.rope_theta!r}")
        if self.n_routed_experts is not None:
            self._check_experts(self.n_routed_experts)

    def _check_experts(self, experts: int) -> None:
        for key in ("num_experts_per_tok", "moe_intermediate_size"):
            if getattr(self, key) is None:
                fail(f"{key} is missing, and n_routed_experts is {experts}")
        self.check_routing()
        groups, kept = self.groups
        if experts % groups:
            fail(f"n_routed_experts {experts} is not a multiple of n_group {groups}")
        if kept > groups:
            fail(f"topk_group {kept} is greater than n_group {groups}")
        if (self.num_experts_per_tok or 0) > (choice := experts // groups * kept):
            fail(f"num_experts_per_tok {self.num_experts_per_tok} is more than the {choice} to choose from")

    def check_routing(self) -> None:
        """Raise a FlashNormError for a way of choosing experts that is not the family's."""
        raise NotImplementedError

    @property
    def groups(self) -> tuple[int, int]:
        """How many groups the experts are in, and how many of them a token may choose from."""
        return self.n_group or 1, self.topk_group or 1

    @property
    def moe_layers(self) -> tuple[int, ...]:
        if self.n_routed_experts is None:
            return ()
        return tuple(
            i for i in range(self.num_hidden_layers) if i >= self.first_k_dense_replace and i % self.moe_layer_freq == 0
        )

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            self.hidden_size,
            self.num_attention_heads,
            self.q_lora_rank,
            self.kv_lora_rank,
            self.qk_nope_head_dim,
            self.qk_rope_head_dim,
            self.v_head_dim,
        )

    @property
    def cache_width(self) -> int:
        return self.num_attention_heads * (self.sizes.qk_head_dim + self.v_head_dim)

    @property
    def attention_scale(self) -> float:
        """``m²/sqrt(head_dim)``, with yarn's magnitude m for ``mscale_all_dim``."""
        scaling = self.rope_scaling or {}
        m = yarn.magnitude(scaling.get("factor", 1), scaling.get("mscale_all_dim", 0))
        return m * m * self.sizes.qk_head_dim**-0.5


def _check_default(scaling: dict | None) -> None:
    given = {"factor", "mscale", "mscale_all_dim"} & {k for k, v in (scaling or {}).items() if v is not None}
    if given and rope.rope_type(scaling) == "default":
        fail(f"rope_scaling: {sorted(given)[0]} is given, and the type is default")
