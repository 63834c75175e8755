"""config.json of Gemma 4's text model: two kinds of layers, with a head size, heads and RoPE of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..layers.rope import rope_type
from . import config as base
from .config import GLOBAL, LOCAL
from .values import Count, fail, is_number

C = TypeVar("C", bound="Config")

#: What a key's absence means, where null means another thing: nothing of the kind.
ABSENT: dict[str, Any] = {
    "global_head_dim": 512,
    "num_kv_shared_layers": 20,
    "hidden_size_per_layer_input": 256,
    "final_logit_softcapping": 30.0,
}

ROPE_PARAMETERS = {
    GLOBAL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
    LOCAL: {"rope_type": "default", "rope_theta": 10000.0},
}


@dataclass(kw_only=True)
class Config(base.Config):
    """gemma4_text's config.json.

    ``layer_types`` says which layers are local (``sliding_attention``) and which global; without it, every
    ``sliding_window_pattern``-th is global. Global layers have ``global_head_dim`` and, where ``attention_k_eq_v``,
    ``num_global_key_value_heads`` and values that are the keys'. The last ``num_kv_shared_layers`` attend to what the
    last layer of their kind before them does.
    """

    ACTIVATIONS: ClassVar[tuple[str, ...]] = ("gelu_pytorch_tanh",)
    WINDOWS: ClassVar[bool] = True

    #: Of no layer: each kind has its own, in rope_parameters.
    rope_theta: float = 10000.0
    rope_parameters: dict | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str = "gelu_pytorch_tanh"
    head_dim: int | None = 256
    global_head_dim: int | None = None
    num_key_value_heads: int | None = 1
    num_global_key_value_heads: int | None = None
    num_kv_shared_layers: Count = 0
    attention_k_eq_v: bool = False
    attention_bias: bool = False
    sliding_window: int = 512
    final_logit_softcapping: float | None = None
    sliding_window_pattern: int = 5
    use_double_wide_mlp: bool = True
    hidden_size_per_layer_input: Count = 0
    vocab_size_per_layer_input: int = 262144
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    use_bidirectional_attention: str | None = None

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any]) -> C:
        if raw.get("per_layer_config") is not None:
            fail("per_layer_config is not supported; write global_head_dim and num_global_key_value_heads instead")
        given = {key: value for key, value in raw.items() if key != "rope_parameters"}
        config = super().from_dict({**ABSENT, **given})
        config.rope_parameters = ROPE_PARAMETERS if (r := raw.get("rope_parameters")) is None else r
        config.check_ropes(raw.get("global_partial_rotary_factor"))
        return config

    def for_stock(self) -> dict[str, Any]:
        written = (
            "tie_word_embeddings",
            "head_dim",
            "global_head_dim",
            "num_key_value_heads",
            "num_kv_shared_layers",
            "hidden_size_per_layer_input",
            "vocab_size_per_layer_input",
            "final_logit_softcapping",
            "rope_parameters",
            "sliding_window",
            "use_double_wide_mlp",
        )
        return {"layer_types": self.kinds, **{key: getattr(self, key) for key in written}}

    @property
    def logit_cap(self) -> float | None:
        return self.final_logit_softcapping

    @property
    def activation(self) -> str:
        return self.hidden_activation

    @property
    def embedding_factor(self) -> float:
        return float(self.hidden_size**0.5)

    @property
    def cache_width_of_all(self) -> int:
        """How many numbers the caches of all layers hold for each position."""
        return sum(2 * self.kv_heads_of(i) * self.head_size_of(i) for i in range(self.first_shared))

    @property
    def first_shared(self) -> int:
        """The first layer that attends to what an earlier one does."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @property
    def kinds(self) -> list[str]:
        """The kind of each layer."""
        pattern = self.sliding_window_pattern
        every = range(1, self.num_hidden_layers + 1)
        return self.layer_types or [GLOBAL if i % pattern == 0 else LOCAL for i in every]

    def is_local(self, index: int) -> bool:
        return self.kinds[index] == LOCAL

    def has_k_eq_v(self, index: int) -> bool:
        """Whether a layer's keys are its values, before they are normed."""
        return self.attention_k_eq_v and not self.is_local(index)

    def head_size_of(self, index: int) -> int:
        return self.head_size if self.is_local(index) else self.global_head_dim or self.head_size

    def kv_heads_of(self, index: int) -> int:
        return (self.num_global_key_value_heads if self.has_k_eq_v(index) else None) or self.kv_heads

    def width_of(self, index: int) -> int:
        """A layer's MLP width."""
        is_wide = self.use_double_wide_mlp and index >= self.first_shared
        return self.intermediate_size * (2 if is_wide else 1)

    def check(self) -> None:
        super().check()
        if self.hidden_activation not in self.ACTIVATIONS:
            fail(f"hidden_activation {self.hidden_activation!r} is not supported (gelu_pytorch_tanh is)")
        for key in ("attention_bias", "rope_scaling"):
            if getattr(self, key):
                fail(f"{key} is not supported for {self.model_type}")
        if self.use_bidirectional_attention not in (None, "vision"):
            fail(f"use_bidirectional_attention {self.use_bidirectional_attention!r} is not supported")
        if (self.global_head_dim or 0) % 2:
            fail(f"global_head_dim {self.global_head_dim} is odd; RoPE rotates pairs")
        if self.num_attention_heads % (self.num_global_key_value_heads or 1):
            heads, kv_heads = self.num_attention_heads, self.num_global_key_value_heads
            fail(f"num_attention_heads {heads} is not a multiple of num_global_key_value_heads {kv_heads}")
        if self.hidden_size_per_layer_input and self.vocab_size_per_layer_input < self.vocab_size:
            fail(
                f"vocab_size_per_layer_input {self.vocab_size_per_layer_input} is less than vocab_size "
                f"{self.vocab_size}; every token has inputs"
            )
        self._check_layers()
        if self.enable_moe_block:
            self._check_experts()

    def _check_layers(self) -> None:
        layers, shared = self.num_hidden_layers, self.num_kv_shared_layers
        if shared >= layers:
            fail(f"num_kv_shared_layers {shared} of num_hidden_layers {layers} leaves none to share from")
        for kind in sorted({*self.kinds[self.first_shared :]} - {*self.kinds[: self.first_shared]}):
            fail(f"num_kv_shared_layers {shared}: none of the layers before is of the type {kind}, to share from")

    def _check_experts(self) -> None:
        for key in ("num_experts", "top_k_experts", "moe_intermediate_size"):
            if getattr(self, key) is None:
                fail(f"{key} is missing, and enable_moe_block is true")
        if (self.top_k_experts or 0) > (self.num_experts or 0):
            fail(f"top_k_experts {self.top_k_experts} is more than num_experts {self.num_experts}")

    def check_ropes(self, global_factor: object) -> None:
        """Raise a FlashNormError for RoPE parameters that are missing, contradict, or are of another type."""
        ropes = self.rope_parameters
        if not isinstance(ropes, dict):
            fail(f"rope_parameters must be a dict, not {ropes!r}")
        assert ropes is not None
        for kind in sorted(set(self.kinds)):
            where, rope = f"rope_parameters: {kind}", ropes.get(kind)
            if not isinstance(rope, dict):
                fail(f"{where} must be a dict, not {rope!r}")
                continue
            types = {str(rope[key]) for key in ("type", "rope_type") if rope.get(key) is not None}
            if len(types) > 1:
                fail(f"{where}: its type is both {' and '.join(sorted(types))}; remove one")
            name = rope_type(rope)
            if name not in ("default", "linear", "proportional"):
                fail(f"{where}: RoPE of type {name!r} is not supported (default, linear, proportional are)")
            for key in ("rope_theta", *(k for k in ("factor",) if name == "linear" or k in rope)):
                if not is_number(rope.get(key)) or not rope[key] > 0:
                    fail(f"{where}: {key} must be a positive number, not {rope.get(key)!r}")
            part = rope.get("partial_rotary_factor", 1.0)
            if not is_number(part) or not 0 < part <= 1:
                fail(f"{where}: partial_rotary_factor must be a number from 0 to 1, not {part!r}")
            if name != "proportional" and part != 1:
                fail(f"{where}: partial_rotary_factor {part!r} is not supported for RoPE of type {name}")
            if name == "default" and rope.get("factor", 1.0) != 1.0:
                fail(f"{where}: factor is given, and the type is default")
            if kind == GLOBAL and global_factor not in (None, part):
                fail(f"global_partial_rotary_factor is {global_factor!r}, and {part!r} in {where}; remove one")
