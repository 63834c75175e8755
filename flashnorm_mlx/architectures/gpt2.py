"""GPT-2: LayerNorm, learned positions, one stacked projection for q, k and v, an MLP without a gate, a tied head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import FlashNormError
from ..layers import attention
from ..layers.heads import split_heads
from ..layers.norm import settled
from ..layers.rope import Positions, Rotation
from ..plan import Fold, Stored, Writer
from . import layernorm
from .block import Block, Names, Norm
from .values import fail, refuse

_LAYER_NORM: dict[str, Any] = {"parameters": ("weight", "bias"), "centres": True}

FOLDS = (
    Fold(
        "model.h.{i}.ln_1",
        into=("model.h.{i}.attn.c_attn",),
        scale="deferred: behind the product, in front of the bias",
        **_LAYER_NORM,
    ),
    Fold(
        "model.h.{i}.ln_2",
        into=("model.h.{i}.mlp.c_fc",),
        scale="deferred: behind the product, in front of the bias",
        **_LAYER_NORM,
    ),
    Fold("model.ln_f", into=("lm_head",), scale="deferred: onto the logits, in front of their bias", **_LAYER_NORM),
)

NAMES = Names(attention="attn", attention_norm="ln_1", mlp_norm="ln_2")

WRITERS = (
    Writer("model.wte", is_table=True),
    Writer("model.wpe", is_table=True),
    Writer("model.h.{i}.attn.c_proj"),
    Writer("model.h.{i}.mlp.c_proj"),
)

TINY = {
    "model_type": "gpt2",
    "n_embd": 96,
    "n_layer": 3,
    "n_head": 6,
    "n_ctx": 64,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 331,
}

#: Names of one function, gelu's approximation by tanh.
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(kw_only=True)
class Config(layernorm.Config):
    """gpt2's config.json."""

    KEYS: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    }

    max_position_embeddings: int = field()
    hidden_act: str = "gelu_new"
    #: There is no RoPE.
    rope_theta: float = 10000.0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        refuse(
            raw,
            "gpt2",
            {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        )
        width = raw.get("n_embd")
        if raw.get("n_inner") is None and isinstance(width, int):
            raw = {**raw, "n_inner": 4 * width}
        return super().from_dict(raw)

    def rope(self, index: int) -> tuple[int, float, dict | None]:
        return 0, self.rope_theta, None

    def for_stock(self) -> dict[str, Any]:
        return {"n_ctx": self.max_position_embeddings}

    def check(self) -> None:
        super().check()
        self.check_multi_head()
        if self.intermediate_size != 4 * self.hidden_size:
            fail(f"intermediate_size {self.intermediate_size} is not supported for gpt2 (4 hidden_size is)")
        if self.hidden_act not in GELU:
            fail(f"hidden_act {self.hidden_act!r} is not supported for gpt2 ({', '.join(GELU)} are)")
        if not self.tie_word_embeddings:
            fail("tie_word_embeddings is false, or lm_head.weight is in the files: gpt2's head is its table wte")


class Attention(attention.Attention):
    """Multi-head attention without RoPE, with both projections under their names here."""

    def __init__(self, hidden_size: int, num_heads: int, rotation: Rotation) -> None:
        super().__init__(hidden_size, num_heads, num_heads, rotation, fused=True, qkv_bias=True, o_bias=True)
        self.c_attn, self.c_proj = self.pop("qkv_proj"), self.pop("o_proj")

    def qkv(self, norm: attention.Norm, h: mx.array, positions: Positions) -> attention.QKV:
        """Norm → project: ``[batch, heads, length, head_dim]`` each."""
        q, k, v = mx.split(split_heads(settled(*norm(h, self.c_attn)), self.head_dim), 3, axis=1)
        return q, k, v

    @property
    def qkv_layers(self) -> tuple[nn.Module, ...]:
        return (self.c_attn,)

    @property
    def o_proj(self) -> nn.Linear:  # type: ignore[override]
        return self.c_proj


class MLP(nn.Module):
    """``gelu(u) Wdᵀ + b`` with ``u`` the up projection of the normed ``h``; there is no gate."""

    activation, gated = "gelu_pytorch_tanh", False

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(hidden_size, intermediate_size)
        self.c_proj = nn.Linear(intermediate_size, hidden_size)

    def gate_up(self, norm: attention.Norm, h: mx.array) -> mx.array:
        """Norm → project → gelu: ``[batch, length, intermediate_size]``."""
        return nn.gelu_approx(settled(*norm(h, self.c_fc)))

    @property
    def gate_up_layers(self) -> tuple[nn.Module, ...]:
        return (self.c_fc,)

    @property
    def down_proj(self) -> nn.Linear:
        return self.c_proj


class Stack(nn.Module):
    """Embeddings, positions, blocks and final norm, under GPT-2's names and ours."""

    def __init__(self, args: Config, blocks: list[nn.Module], norm: Norm) -> None:
        super().__init__()
        self.wte = nn.Embedding(args.vocab_size, args.hidden_size)
        self.wpe = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.h = blocks
        self.ln_f = norm()

    embed_tokens = property(lambda self: self.wte)
    layers = property(lambda self: self.h)
    norm = property(lambda self: self.ln_f)


class Model(layernorm.LayerNormDecoder):
    """The head is tied. Folded, it is a copy of the table: ``(x̂·g + β) Eᵀ = x̂ E*ᵀ + E β``, with ``E* = E diag(g)``.

    The table that tokens are looked up in is centred, and can't serve: ``x̂·g + β`` has a mean (FlashNorm §1.2 needs
    every writer of the residual centred, and no reader).
    """

    FOLDS = FOLDS
    WRITERS = WRITERS
    args: Config

    def __init__(self, args: Config) -> None:
        super().__init__(args)
        self.model: Any = Stack(args, self.model.layers, self.norm)

    def block(self, index: int) -> Block:
        hidden, heads = self.args.hidden_size, self.args.num_attention_heads
        parts = Attention(hidden, heads, self.rotation(index)), MLP(hidden, self.args.intermediate_size)
        return Block(*parts, self.norm, NAMES)

    @property
    def tables(self) -> tuple[nn.Module, ...]:
        return self.model.wte, self.model.wpe

    def opened(self, ids: mx.array, embeddings: mx.array | None, caches: list) -> mx.array:
        """Embeddings of the tokens and of their positions.

        Raises:
            FlashNormError: past the last position that was learned.
        """
        h = super().opened(ids, embeddings, caches)
        offset, length = 0 if caches[0] is None else caches[0].offset, h.shape[1]
        last = int(mx.max(offset)) if isinstance(offset, mx.array) else offset
        learned = self.args.max_position_embeddings
        if (end := last + length) > learned:
            raise FlashNormError(
                f"the context is {end} tokens long, and the model has {learned} positions (n_positions)"
            )
        positions = mx.array(offset)[..., None] + mx.arange(length)  # of each row, where the cache is batched
        return h + self.model.wpe(positions).astype(h.dtype)

    def stored(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
        """mlx-lm's layout, or Hugging Face's: without ``model.``, or with ``transformer.``, and with ``[in, out]``
        matrices. The shape of a layer's c_attn tells the two apart; that of a square c_proj can't.

        Raises:
            FlashNormError: for a tensor that is there under two names.
        """
        hidden, out = self.args.hidden_size, dict[str, Stored]()
        for name in shapes:
            own = "model." + re.sub(r"^(transformer|model)\.", "", name)
            if self.is_unused(own):
                continue
            if own in out:
                raise FlashNormError(f"tensors {out[own].name} and {name} are both {own}; remove one")
            conv = re.fullmatch(r"(.*\.)(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight", name)
            c_attn = shapes.get(f"{conv[1]}attn.c_attn.weight") if conv else None
            out[own] = Stored(name, transposed=c_attn is not None and tuple(c_attn) == (hidden, 3 * hidden))
        return out

    def is_unused(self, name: str) -> bool:
        return name.endswith((".attn.bias", ".attn.masked_bias")) or name.startswith(("lm_head.", "model.lm_head."))
