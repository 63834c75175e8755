"""Gemma 4, text: norms on both sides, q, k and v normed, layers that share keys and values, inputs of each layer."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import FlashNormError
from ..layers import proportional, rope
from ..layers.mlp import GatedMLP
from ..layers.norm import PostNorm
from ..layers.qkv_norm import QKVNormAttention
from ..plan import Fold, Stored
from . import gemma2, llama
from .base import Decoder
from .gemma4_block import Block, Seen
from .gemma4_config import GLOBAL, LOCAL, Config

__all__ = ["TINY", "Config", "Model"]

_LAYER = "model.layers.{i}."
_ATTENTION = f"{_LAYER}self_attn."

#: Parts of the names of tensors that nothing reads: the ranges of activations in training with quantisation.
UNREAD = ("rotary_emb.", "input_max", "input_min", "output_max", "output_min")

TINY: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_kv_shared_layers": 2,
    "attention_k_eq_v": True,
    "sliding_window": 6,
    "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
    "hidden_size_per_layer_input": 12,
    "vocab_size": 331,
    "vocab_size_per_layer_input": 331,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


class Model(Decoder):
    args: Config

    def __init__(self, args: Config) -> None:
        super().__init__(args)
        if dims := args.hidden_size_per_layer_input:
            stack, width = self.stack, args.num_hidden_layers * dims
            stack.embed_tokens_per_layer = nn.Embedding(args.vocab_size_per_layer_input, width)
            stack.per_layer_model_projection = nn.Linear(args.hidden_size, width, bias=False)
            # norm(y/√n; ε) = norm(y; nε): its input needs no factor
            stack.per_layer_projection_norm = PostNorm(dims, args.rms_norm_eps * args.hidden_size)

    def block(self, index: int) -> Block:
        args = self.args
        attention = QKVNormAttention(
            args.hidden_size,
            args.num_attention_heads,
            args.kv_heads_of(index),
            self.rotation(index),
            args.rms_norm_eps,
            window=args.sliding_window if args.is_local(index) else None,
            shares=index >= args.first_shared,
            k_eq_v=args.has_k_eq_v(index),
        )
        mlp = GatedMLP(args.hidden_size, args.width_of(index), activation=args.activation)
        return Block(args, attention, mlp, self.norm, self.post_norm)

    def per_layer(self, ids: mx.array | None, h: mx.array) -> mx.array:
        """Every layer's own input, ``(norm(h Wᵀ/√n) + √p · table[ids]) / √2``: ``[batch, length, layers, p]``."""
        if ids is None:
            raise FlashNormError("input_embeddings alone are not supported: layers have inputs that go by token ids")
        dims = self.args.hidden_size_per_layer_input
        projected = self.stack.per_layer_model_projection(h)
        looked_up = self.stack.embed_tokens_per_layer(ids).astype(h.dtype) * dims**0.5
        projected, looked_up = (mx.unflatten(y, -1, (-1, dims)) for y in (projected, looked_up))
        return (self.stack.per_layer_projection_norm(projected) + looked_up) * 2**-0.5

    def layer_inputs(self, ids: mx.array | None, h: mx.array) -> list[tuple[mx.array, ...]]:
        if not self.args.hidden_size_per_layer_input:
            return super().layer_inputs(ids, h)
        x = mx.contiguous(mx.moveaxis(self.per_layer(ids, h), 2, 0))  # so that a layer's rows lie together
        return [(own.squeeze(0),) for own in mx.split(x, len(x))]

    def stepped(self, ids: mx.array, cache: list | None) -> mx.array | None:
        return super().stepped(ids, cache and cache[: self.args.first_shared])

    def caches(self, cache: list | None) -> list:
        """The last layers, which share earlier ones', have none."""
        own = self.args.first_shared
        return super().caches(cache[:own] + [None] * self.args.num_kv_shared_layers if cache else None)

    def context(self, h: mx.array, cache: list) -> Any:
        shared = super().context(h, cache)
        return {kind: (positions, Seen(mask)) for kind, (positions, mask) in shared.items()}

    def rotation(self, index: int) -> rope.Rotation:
        return self._rotations[self.args.kinds[index]]

    @cached_property
    def _rotations(self) -> dict[str, rope.Rotation]:
        """Of each kind of layer."""
        args, rotations = self.args, {}
        assert args.rope_parameters is not None
        for kind in set(args.kinds):
            dims, scaling = args.head_size_of(args.kinds.index(kind)), args.rope_parameters[kind]
            is_usual = rope.rope_type(scaling) != "proportional"
            form = rope.inverse_frequencies if is_usual else proportional.inverse_frequencies
            rotations[kind] = rope.Rotation(dims, form(dims, float(scaling["rope_theta"]), scaling))
        return rotations

    def make_cache(self) -> list:
        """None for the layers that share."""
        return super().make_cache()[: self.args.first_shared]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        stored = self.stored({name: value.shape for name, value in weights.items()})
        weights = super().sanitize({name: weights[s.name] for name, s in stored.items()})
        return {k: v for name, value in weights.items() for k, v in self.arranged(name, value).items()}

    def is_unused(self, name: str) -> bool:
        """Among others, keys and values of layers that share others', and what belongs to quantised activations."""
        layers = range(self.args.first_shared, self.args.num_hidden_layers)
        shared = tuple(f"{_ATTENTION.format(i=i)}{part}." for i in layers for part in ("k_proj", "v_proj", "k_norm"))
        unread = any(part in name for part in UNREAD)
        return super().is_unused(name) or unread or name.startswith(shared)

    def stored(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
        """Hugging Face's experts are tensors of their own, without ``.weight``; gate and up are one."""
        bare = (".experts.gate_up_proj", ".experts.down_proj")
        return {
            f"{name}.weight".replace(".experts.down", ".experts.switch_glu.down")
            if name.endswith(bare)
            else name: stored
            for name, stored in super().stored(shapes).items()
        }

    def stored_as(self, module: str, names: Container[str]) -> tuple[str, ...]:
        experts, found, last = module.partition(".switch_glu.")
        both = f"{experts}.gate_up_proj"
        return (both,) if found and last != "down_proj" and f"{both}.weight" in names else (module,)

    def stored_shapes(self, names: Container[str]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in super().stored_shapes(names).items():
            module, _, kind = name.rpartition(".")
            (stored,) = self.stored_as(module, names)
            shapes[f"{stored}.{kind}"] = shape if stored == module else (shape[0], 2 * shape[1], shape[2])
        return shapes

    def arranged(self, name: str, value: mx.array) -> dict[str, mx.array]:
        """``experts.gate_up_proj [experts, 2·width, hidden]`` as its two halves."""
        experts, found, _ = name.partition(".gate_up_proj.weight")
        if not found:
            return {name: value}
        halves = zip(("gate", "up"), mx.split(value, 2, axis=-2), strict=True)
        return {f"{experts}.switch_glu.{p}_proj.weight": mx.contiguous(half) for p, half in halves}

    def read_share(self, name: str) -> float:
        """Of the experts, a token reads those that it is sent to."""
        if ".experts." in name:
            return (self.args.top_k_experts or 0) / (self.args.num_experts or 1)
        return super().read_share(name)

    @property
    def folds(self) -> tuple[Fold, ...]:
        """This model's norms; who consumes them depends on the layer."""
        args = self.args
        layers = range(args.num_hidden_layers)
        own = tuple(layers[: args.first_shared])
        groups = {
            ("q", "k", "v"): tuple(i for i in own if not args.has_k_eq_v(i)),
            ("q", "k"): tuple(i for i in own if args.has_k_eq_v(i)),
            ("q",): tuple(layers[args.first_shared :]),
        }
        tables, post = "fused into RoPE's tables", gemma2.FOLDS[1].instead
        mlp = gemma2.FOLDS[2]
        return (
            *(
                Fold(
                    f"{_LAYER}input_layernorm",
                    tuple(f"{_ATTENTION}{p}_proj" for p in group),
                    scale="cancelled by the norms of their heads with ε/s²; multiplies nothing",
                    layers=some,
                )
                for group, some in groups.items()
                if some
            ),
            Fold(f"{_ATTENTION}q_norm", instead=tables),
            Fold(f"{_ATTENTION}k_norm", instead=tables, layers=own),
            Fold(f"{_ATTENTION}v_norm", instead="none", parameters=(), layers=own),
            Fold(f"{_LAYER}post_attention_layernorm", instead=post),
            Fold(f"{_LAYER}pre_feedforward_layernorm", mlp.into, scale=mlp.scale),
            *(self._folds_of_experts() if args.enable_moe_block else ()),
            Fold(f"{_LAYER}post_feedforward_layernorm", instead=post),
            *(self._folds_of_inputs(post) if args.hidden_size_per_layer_input else ()),
            llama.FOLDS[-1],
        )

    @staticmethod
    def _folds_of_experts() -> tuple[Fold, ...]:
        into = tuple(f"{_LAYER}experts.switch_glu.{p}_proj" for p in ("gate", "up"))
        summed = "kept: feeds the sum of MLP and experts, no projection"
        return (
            Fold(
                f"{_LAYER}router",
                instead="kept: multiplies the router's input",
                scale="deferred: onto the router's logits",
                parameters=("scale",),
            ),
            Fold(f"{_LAYER}pre_feedforward_layernorm_2", into, scale=gemma2.FOLDS[2].scale),
            Fold(f"{_LAYER}post_feedforward_layernorm_1", instead=summed),
            Fold(f"{_LAYER}post_feedforward_layernorm_2", instead=summed),
        )

    @staticmethod
    def _folds_of_inputs(post: str) -> tuple[Fold, ...]:
        return (
            Fold(f"{_LAYER}post_per_layer_input_norm", instead=post),
            Fold("model.per_layer_projection_norm", instead="kept: feeds an addition, no projection"),
        )
