"""config.json as a checked dataclass: what a model needs, of the right type and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import mlx.core as mx

from ..errors import FlashNormError
from ..layers.rope import YARN, rope_type
from ..plan import is_marked
from .values import fail, is_number, typed

C = TypeVar("C", bound="Config")

#: What ``layer_types`` may have: a layer whose attention sees everything, and one that sees a window.
GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(kw_only=True)
class Config:
    """What every decoder has. A family's own Config adds fields and checks.

    ``arm`` and ``compute_dtype`` are not a checkpoint's: ``load`` sets them.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    rope_theta: float
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    rope_scaling: dict | None = None
    tie_word_embeddings: bool = True
    hidden_act: str = "silu"
    rope_traditional: bool = False
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    layer_types: list | None = None
    arm: str = "flashnorm"
    compute_dtype: mx.Dtype | None = None
    #: The gains are folded already.
    marked: bool = False

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any]) -> C:
        """Read a parsed config.json; keys that are not ours are ignored.

        Raises:
            FlashNormError: for a missing key, a wrong type, a number out of range, or sizes that contradict.
        """
        raw = {**_with_rope(raw), "marked": is_marked(dict(raw))}
        known = {}
        for f in dataclasses.fields(cls):
            if raw.get(f.name) is None:
                if f.default is dataclasses.MISSING:
                    raise FlashNormError(f"config.json: {f.name} is missing{_HINTS.get(f.name, '')}")
                continue
            known[f.name] = typed(f.name, str(f.type), raw[f.name])
        config = cls(**known)
        config.check()
        return config

    #: The activations that hidden_act may name.
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ("silu",)
    #: The types of RoPE scaling that rope_scaling may name.
    ROPE_TYPES: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3", "yarn")
    #: Whether a head's first channels alone may be rotated.
    PARTIAL_ROPE: ClassVar[bool] = False
    #: Whether layers may see a window.
    WINDOWS: ClassVar[bool] = False

    @property
    def activation(self) -> str:
        """The gate's."""
        return self.hidden_act

    @property
    def embedding_factor(self) -> float:
        """What embeddings are multiplied by."""
        return 1.0

    @property
    def logit_cap(self) -> float | None:
        """Logits are ``cap · tanh(logits / cap)``."""
        return None

    def rope(self, index: int) -> tuple[int, float, dict | None]:
        """Of a layer's RoPE: the channels of a head that are rotated, the base, and how frequencies are scaled."""
        return int(self.head_size * self.partial_rotary_factor), self.rope_theta, self.rope_scaling

    def is_local(self, index: int) -> bool:
        """Whether a layer's attention sees a window only, of ``sliding_window`` positions."""
        return self.layer_types is not None and self.layer_types[index] == LOCAL

    def window(self, index: int) -> int | None:
        """How many positions a layer's attention sees; None: all, also where no context is longer."""
        window, most = self.sliding_window, self.max_position_embeddings
        return None if window is None or (most and window >= most) or not self.is_local(index) else window

    @property
    def stock_has_windows(self) -> bool:
        """Whether the layers that see a window here do so in stock mlx-lm."""
        return True

    @property
    def comparable(self) -> int | None:
        """Contexts of up to so many tokens are the same in stock mlx-lm; None: all are."""
        windows = [] if self.stock_has_windows else [self.window(i) for i in range(self.num_hidden_layers)]
        return min((most for most in (*windows, self.max_position_embeddings) if most is not None), default=None)

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def for_stock(self) -> dict[str, Any]:
        """The keys of config.json that stock loaders misread, or ask for, where they are not written."""
        return {
            "tie_word_embeddings": self.tie_word_embeddings,
            "head_dim": self.head_size,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling if rope_type(self.rope_scaling) != "default" else None,
        }

    @property
    def cache_width(self) -> int:
        """How many numbers a layer's cache holds for each position."""
        return 2 * self.kv_heads * self.head_size

    @property
    def cache_width_of_all(self) -> int:
        """The same of all layers together."""
        return self.num_hidden_layers * self.cache_width

    def check(self) -> None:
        """Raise a FlashNormError where values contradict each other, or ask for what is not supported."""
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            fail(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if heads % self.kv_heads:
            fail(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.kv_heads}")
        if self.head_size % 2:
            fail(f"head_dim {self.head_size} is odd; RoPE rotates pairs")
        if self.hidden_act not in self.ACTIVATIONS:
            known = ", ".join(self.ACTIVATIONS)
            fail(f"hidden_act {self.hidden_act!r} is not supported for {self.model_type} ({known} is)")
        if self.rope_traditional:
            fail(f"rope_traditional is not supported for {self.model_type}")
        if not self.PARTIAL_ROPE and (
            self.partial_rotary_factor != 1.0 or (self.rope_scaling or {}).get("partial_rotary_factor", 1.0) != 1.0
        ):
            fail(f"partial_rotary_factor is not supported for {self.model_type}")
        self.check_layer_types()
        kind = rope_type(self.rope_scaling)
        if kind not in self.ROPE_TYPES:
            known = ", ".join(self.ROPE_TYPES)
            fail(f"rope_scaling: type {kind!r} is not supported for {self.model_type} (known: {known})")
        _check_rope(self.rope_scaling)
        if kind in YARN and self.rope_theta <= 1:
            fail(f"rope_theta must be greater than 1, not {self.rope_theta!r}")

    def check_layer_types(self) -> None:
        """Raise a FlashNormError unless ``layer_types``, where it is, names for each layer an attention there is."""
        kinds = self.layer_types
        if kinds is None:
            return
        if not all(isinstance(kind, str) for kind in kinds):
            fail("layer_types must be a list of names")
        if len(kinds) != self.num_hidden_layers:
            fail(f"layer_types has {len(kinds)} entries for {self.num_hidden_layers} layers")
        if unknown := set(kinds) - {GLOBAL, LOCAL}:
            fail(f"layer_types has {sorted(unknown)[0]!r}; {GLOBAL} and {LOCAL} are known")
        if LOCAL in kinds and not self.WINDOWS:
            fail(f"layer_types: {LOCAL} is not supported for {self.model_type}")
        if LOCAL in kinds and self.sliding_window is None:
            fail(f"sliding_window is missing, and layer_types has {LOCAL}")

    def check_multi_head(self) -> None:
        """Raise a FlashNormError unless each head has its own key."""
        if self.kv_heads != self.num_attention_heads:
            fail(f"num_key_value_heads {self.kv_heads} is not num_attention_heads {self.num_attention_heads}")

    def check_rotated(self, dims: int) -> None:
        """Raise a FlashNormError unless RoPE can rotate the first ``dims`` channels of a head."""
        if not 2 <= dims <= self.head_size or dims % 2:
            fail(
                f"partial_rotary_factor {self.partial_rotary_factor} rotates {dims} of {self.head_size} dimensions; "
                "RoPE rotates pairs"
            )


_HINTS = {
    "rope_theta": " (at the top level and in rope_parameters); add it: Llama 2's is 10000.0",
}


def _with_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` from wherever they are: transformers ≥ 5 nests them in rope_parameters."""
    out = dict(raw)
    nested = raw.get("rope_parameters")
    if nested is not None and not isinstance(nested, Mapping):
        fail(f"rope_parameters must be an object, not {nested!r}")
    if isinstance(nested, Mapping):
        theta = nested.get("rope_theta")
        if any(isinstance(value, Mapping) for value in nested.values()):
            fail("rope_parameters of each layer type are not supported")
        if None not in (raw.get("rope_theta"), theta) and raw["rope_theta"] != theta:
            fail(f"rope_theta is {raw['rope_theta']!r}, and {theta!r} in rope_parameters; remove one")
        if raw.get("rope_theta") is None:
            out["rope_theta"] = theta
        if raw.get("rope_scaling") is None:
            out["rope_scaling"] = dict(nested)
        elif isinstance(raw["rope_scaling"], Mapping) and _contradict(raw["rope_scaling"], nested):
            fail("rope_scaling and rope_parameters contradict each other; remove one")
    elif out.get("rope_theta") is None and _before_rope_theta(raw.get("transformers_version")):
        out["rope_theta"] = 10000.0
    return out


def _contradict(scaling: Mapping[str, Any], nested: Mapping[str, Any]) -> bool:
    """Whether RoPE is scaled in two ways; what only one of the two says is no contradiction."""
    kinds = rope_type(dict(scaling)), rope_type(dict(nested))
    both = (set(scaling) & set(nested)) - {"type", "rope_type"}
    return kinds[1] not in ("default", kinds[0]) or any(scaling[key] != nested[key] for key in both)


def _before_rope_theta(version: object) -> bool:
    """Whether a file is older than the key itself (transformers 4.33), as Llama 2's are: its base was fixed."""
    numbers = str(version).split(".")[:2] if version else []
    return all(n.isdigit() for n in numbers) and bool(numbers) and tuple(map(int, numbers)) < (4, 33)


def _check_rope(scaling: dict | None) -> None:
    kinds = {str(scaling[key]) for key in ("type", "rope_type") if scaling and scaling.get(key) is not None}
    if len(kinds) > 1:
        fail(f"rope_scaling: its type is both {' and '.join(sorted(kinds))}; remove one")
    if scaling and not kinds and scaling.get("factor", 1.0) != 1.0:
        fail(f"rope_scaling: its type is missing, and its factor is {scaling['factor']!r}")
    if rope_type(scaling) in ("linear", "llama3"):
        assert scaling is not None
        keys = [k for k in ("factor", "low_freq_factor", "high_freq_factor") if k in scaling or k == "factor"]
        for key in [*keys, *(k for k in ("original_max_position_embeddings",) if k in scaling)]:
            if not is_number(scaling.get(key)) or not scaling[key] > 0:
                fail(f"rope_scaling: {key} must be a positive number, not {scaling.get(key)!r}")
        if scaling.get("high_freq_factor", 4.0) <= scaling.get("low_freq_factor", 1.0):
            fail("rope_scaling: high_freq_factor must be greater than low_freq_factor")
    if scaling is not None and rope_type(scaling) in YARN:
        _check_yarn(scaling)


def _check_yarn(scaling: dict) -> None:
    numbers = {"factor": 1.0, "original_max_position_embeddings": 1.0, "beta_fast": 1e-9, "beta_slow": 1e-9}
    for key, least in {**numbers, "mscale": 0.0, "mscale_all_dim": 0.0}.items():
        value: Any = scaling.get(key)
        needed = key in ("factor", "original_max_position_embeddings")
        if not (is_number(value) and value >= least) and (needed or key in scaling):
            fail(f"rope_scaling: {key} must be a number from {least:g} on, not {value!r}")
    if scaling.get("beta_fast", 32) <= scaling.get("beta_slow", 1):
        fail("rope_scaling: beta_fast must be greater than beta_slow")
    for key, usual in (("attention_factor", None), ("truncate", True)):
        if scaling.get(key, usual) != usual:
            fail(f"rope_scaling: {key} is not supported")
