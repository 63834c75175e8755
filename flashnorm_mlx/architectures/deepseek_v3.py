"""DeepSeek-V3 and R1: V2's block, with the normed latent in the cache, and experts chosen by sigmoids with a bias."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from ..errors import FlashNormError
from ..layers import moe
from ..layers.latent import AbsorbedAttention
from ..layers.rope import Rotation
from ..plan import Fold
from . import deepseek_v2, latent_config
from .values import fail

_ATTENTION = "model.layers.{i}.self_attn."

TINY = deepseek_v2.TINY | {
    "model_type": "deepseek_v3",
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}


@dataclass(kw_only=True)
class Config(latent_config.Config):
    """deepseek_v3's config.json. What loaders have different defaults for must be in it."""

    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True

    REQUIRED: ClassVar[tuple[str, ...]] = (
        "q_lora_rank",
        "first_k_dense_replace",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
    )

    def check_routing(self) -> None:
        if self.topk_method != "noaux_tc":
            fail(f"topk_method {self.topk_method!r} is not supported for {self.model_type} (noaux_tc is)")
        if self.scoring_func != "sigmoid":
            fail(f"scoring_func {self.scoring_func!r} is not supported for {self.model_type} (sigmoid is)")
        groups, experts = self.n_group or 1, self.n_routed_experts or 0
        if groups > 1 and experts < 2 * groups:
            fail(f"n_routed_experts {experts} is less than two for each of n_group {groups}")

    @property
    def cache_width(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim


class Model(deepseek_v2.Model):
    args: Config

    def attention(self, rotation: Rotation) -> AbsorbedAttention:
        args = self.args
        return AbsorbedAttention(args.sizes, rotation, self.latent_norm, args.attention_scale, bias=args.attention_bias)

    def router(self, kind: Callable[..., moe.Router] = moe.SigmoidRouter, **options: Any) -> moe.Router:
        return super().router(kind, normed=self.args.norm_topk_prob, **options)

    def latent_fold(self) -> Fold:
        halves = (_ATTENTION + "embed_q", _ATTENTION + "unembed_out")
        scale = "applied to the latent, which is cached normed"
        return Fold(_ATTENTION + "kv_a_layernorm", halves, scale=scale, transposed=halves[:1])

    def stored_as(self, module: str, names: Container[str]) -> tuple[str, ...]:
        """Hugging Face's layout has ``kv_b_proj`` where this model has its two halves."""
        attention, _, last = module.rpartition(".")
        whole = f"{attention}.kv_b_proj"
        if last in ("embed_q", "unembed_out") and f"{whole}.weight" in names:
            return (whole,)
        return super().stored_as(module, names)

    def stored_shapes(self, names: Container[str]) -> dict[str, tuple[int, ...]]:
        sizes, shapes = self.args.sizes, super().stored_shapes(names)
        for name in shapes:
            if name.endswith(".kv_b_proj.weight"):
                shapes[name] = (sizes.num_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim), sizes.kv_lora_rank)
        return shapes

    def arranged(self, name: str, value: mx.array) -> dict[str, mx.array]:
        """``kv_b_proj [heads·(nope+v), rank]`` as ``embed_q [heads, rank, nope]``, ``unembed_out [heads, v, rank]``."""
        stem = name.removesuffix("kv_b_proj.weight")
        if stem == name:
            return {name: value}
        k, v = mx.split(
            mx.unflatten(value, 0, (self.args.num_attention_heads, -1)), [self.args.qk_nope_head_dim], axis=1
        )
        return {f"{stem}embed_q.weight": mx.contiguous(k.swapaxes(1, 2)), f"{stem}unembed_out.weight": mx.contiguous(v)}

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = self._unpacked(super().sanitize(weights))
        return {k: v for name, value in weights.items() for k, v in self.arranged(name, value).items()}

    def is_exact(self, name: str) -> bool:
        return name.endswith(".e_score_correction_bias")

    def _unpacked(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """A quantised ``kv_b_proj`` in full: its halves are read along another axis than it was quantised along."""
        out, rank = dict(weights), self.args.kv_lora_rank
        for name in weights:
            if name.endswith(".kv_b_proj.scales"):
                stem = name.removesuffix(".scales")
                packed, scales, biases = (out.pop(f"{stem}.{part}", None) for part in ("weight", "scales", "biases"))
                if packed is None or scales is None or biases is None:
                    raise FlashNormError(f"{stem} is quantised in a format that is not supported; affine is")
                bits, group_size = packed.shape[-1] * 32 // rank, rank // scales.shape[-1]
                out[f"{stem}.weight"] = mx.dequantize(packed, scales, biases, bits=bits, group_size=group_size)
        return out
