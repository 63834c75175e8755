"""DeepSeek-V2, with a query latent or without (Lite): latent attention and a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..kernels.packed import Uncovered
from ..layers import moe, rope
from ..layers.latent import ExpandedAttention, LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.norm import ARMS
from ..plan import Fold
from . import latent_config, llama
from .base import Decoder, named_arrays
from .block import Block
from .values import fail

#: ε of the latents' norms, whatever rms_norm_eps is.
LATENT_EPS = 1e-6

_ATTENTION = "model.layers.{i}.self_attn."
_MLP = "model.layers.{i}.mlp."

_QUERIES = "deferred: into RoPE's tables (q_pe), behind the product (q_nope)"

TINY: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "intermediate_size": 160,
    "moe_intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
    "rms_norm_eps": 1e-6,
    "vocab_size": 331,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.5,
    },
    "max_position_embeddings": 2560,
    "tie_word_embeddings": False,
}


@dataclass(kw_only=True)
class Config(latent_config.Config):
    """deepseek_v2's config.json."""

    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False

    def check_routing(self) -> None:
        if self.topk_method not in ("greedy", "group_limited_greedy"):
            fail(f"topk_method {self.topk_method!r} is not supported (greedy and group_limited_greedy are)")
        if self.topk_method == "group_limited_greedy" and None in (self.n_group, self.topk_group):
            fail("n_group or topk_group is missing, and topk_method is group_limited_greedy")
        if self.scoring_func != "softmax":
            fail(f"scoring_func {self.scoring_func!r} is not supported for {self.model_type} (softmax is)")
        if self.norm_topk_prob:
            fail(f"norm_topk_prob is not supported for {self.model_type}")

    @property
    def groups(self) -> tuple[int, int]:
        return super().groups if self.topk_method == "group_limited_greedy" else (1, 1)


class Model(Decoder):
    args: latent_config.Config

    def block(self, index: int) -> Block:
        parts: tuple[Any, Any] = self.attention(self.rotation(index)), self.mlp(index)
        return Block(*parts, self.norm)

    def attention(self, rotation: rope.Rotation) -> LatentAttention:
        args = self.args
        return ExpandedAttention(args.sizes, rotation, self.latent_norm, args.attention_scale, bias=args.attention_bias)

    def mlp(self, index: int) -> nn.Module:
        args = self.args
        if index not in args.moe_layers:
            return GatedMLP(args.hidden_size, args.intermediate_size)
        assert args.moe_intermediate_size is not None
        return moe.MoE(
            self.router(), args.moe_intermediate_size, args.moe_intermediate_size * (args.n_shared_experts or 0)
        )

    def router(self, kind: Callable[..., moe.Router] = moe.SoftmaxRouter, **options: Any) -> moe.Router:
        args, (groups, kept) = self.args, self.args.groups
        assert args.n_routed_experts is not None and args.num_experts_per_tok is not None
        return kind(
            args.hidden_size,
            args.n_routed_experts,
            args.num_experts_per_tok,
            groups=groups,
            groups_kept=kept,
            factor=args.routed_scaling_factor,
            **options,
        )

    def latent_norm(self, dims: int) -> nn.Module:
        """A foldable norm of a latent, in the arm that was asked for."""
        return ARMS[self.args.arm](dims, LATENT_EPS)

    @cached_property
    def _rotation(self) -> rope.Rotation:
        dims, base, scaling = self.args.qk_rope_head_dim, self.args.rope_theta, self.args.rope_scaling
        frequencies = rope.inverse_frequencies(dims, base, scaling)
        return rope.Rotation(dims, frequencies, traditional=True, factor=rope.magnitude(scaling))

    def rotation(self, index: int) -> rope.Rotation:
        return self._rotation

    def fuse(self, *, measure: bool = False, read: Callable[[nn.Module], None] | None = None) -> None:
        raise Uncovered("multi-head latent attention")

    @property
    def folds(self) -> tuple[Fold, ...]:
        """This model's norms; which there are, and who consumes them, depends on the config."""
        args, latent = self.args, self.args.q_lora_rank is not None
        experts = ("switch_mlp.", "shared_experts.") if args.n_shared_experts else ("switch_mlp.",)
        dense = tuple(i for i in range(args.num_hidden_layers) if i not in args.moe_layers)
        norm = "model.layers.{i}.post_attention_layernorm"
        deferred = "deferred: behind the product, inside the activation"
        return (
            Fold(
                "model.layers.{i}.input_layernorm",
                into=(_ATTENTION + ("q_a_proj" if latent else "q_proj"), _ATTENTION + "kv_a_proj_with_mqa"),
                scale="settled in front of the biases"
                if args.attention_bias
                else "cancelled by the latent norms with ε/s²; into RoPE's tables (k_pe)"
                + ("" if latent else ", deferred behind the product (q)"),
            ),
            *([Fold(_ATTENTION + "q_a_layernorm", (_ATTENTION + "q_b_proj",), scale=_QUERIES)] if latent else []),
            self.latent_fold(),
            Fold(norm, (_MLP + "gate_proj", _MLP + "up_proj"), layers=dense, scale=deferred),
            Fold(
                norm,
                (_MLP + "gate", *(f"{_MLP}{e}{p}_proj" for e in experts for p in ("gate", "up"))),
                layers=args.moe_layers,
                scale=deferred + ", and onto the router's logits",
            ),
            llama.FOLDS[-1],
        )

    def latent_fold(self) -> Fold:
        """What becomes of the norm of the latent that keys and values come from."""
        return Fold(_ATTENTION + "kv_a_layernorm", (_ATTENTION + "kv_b_proj",), scale="deferred: behind the product")

    def stored_as(self, module: str, names: Container[str]) -> tuple[str, ...]:
        """Experts are stored stacked, or one by one."""
        if ".switch_mlp." not in module:
            return (module,)
        ones = tuple(module.replace(".switch_mlp.", f".experts.{e}.") for e in range(self.args.n_routed_experts or 0))
        return ones if f"{ones[0]}.weight" in names else (module,)

    def stored_shapes(self, names: Container[str]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, a in named_arrays(self):
            module, _, kind = name.rpartition(".")
            stored = self.stored_as(module, names)
            shapes |= dict.fromkeys((f"{s}.{kind}" for s in stored), tuple(a.shape[len(stored) > 1 :]))
        return shapes

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return moe.stacked(super().sanitize(weights))

    def is_unused(self, name: str) -> bool:
        """Among others, the layers that predict further tokens, which come behind the last one."""
        layers = self.args.num_hidden_layers
        further = [f"model.layers.{layers + i}." for i in range(self.args.num_nextn_predict_layers)]
        return super().is_unused(name) or name.startswith(tuple(further))

    def read_share(self, name: str) -> float:
        """Of the routed experts, a token reads those that it is sent to."""
        if ".switch_mlp." in name or ".experts." in name:
            return (self.args.num_experts_per_tok or 0) / (self.args.n_routed_experts or 1)
        return super().read_share(name)
