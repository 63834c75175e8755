"""What the families with LayerNorm share: config keys of their own, and a model that folding refits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import mlx.core as mx
import mlx.nn as nn

from .. import fold
from ..errors import FlashNormError
from ..layers.layernorm import ARMS
from ..layers.norm import ARMS as RMS_ARMS
from ..layers.norm import settled
from ..layers.rope import rope_type
from ..plan import Plan, Writer, make_centred_plan
from . import config as base
from .base import Decoder
from .values import fail

C = TypeVar("C", bound="Config")


@dataclass(kw_only=True)
class Config(base.Config):
    """A config.json whose keys differ: ``KEYS`` has, for each of our names, the file's."""

    KEYS: ClassVar[dict[str, str]]

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any]) -> C:
        """As every config's; errors name the file's keys."""
        known = {key: value for key, value in raw.items() if key not in cls.KEYS}
        known |= {ours: raw.get(theirs) for ours, theirs in cls.KEYS.items()}
        try:
            return super().from_dict(known)
        except FlashNormError as error:
            ours = re.compile(rf"\b({'|'.join(cls.KEYS)})\b")
            raise FlashNormError(ours.sub(lambda word: cls.KEYS[word[0]], str(error))) from None

    def check(self) -> None:
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            fail(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if self.head_dim not in (None, self.hidden_size // heads):
            fail(f"head_dim {self.head_dim} is not hidden_size {self.hidden_size} / num_attention_heads {heads}")
        if heads % self.kv_heads:
            fail(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.kv_heads}")
        if self.rope_traditional:
            fail(f"rope_traditional is not supported for {self.model_type}")
        if self.partial_rotary_factor != 1.0 and not self.PARTIAL_ROPE:
            fail(f"partial_rotary_factor is not supported for {self.model_type}")
        if rope_type(self.rope_scaling) != "default":
            fail(f"rope_scaling is not supported for {self.model_type}")


class LayerNormDecoder(Decoder):
    """A decoder whose norms are LayerNorms, in the form that the checkpoint has.

    Folding makes RMSNorms of them (:meth:`sanitize`): the residual is written with mean zero, so that
    ``LayerNorm(a) = RMSNorm(a)`` (§1.2), the biases go into the projections' (§1.1), the gains into their weights (§1).
    """

    #: Everything that adds to the residual.
    WRITERS: ClassVar[tuple[Writer, ...]]

    def norm(self) -> nn.Module:
        return ARMS[self.args.arm](self.args.hidden_size, self.args.rms_norm_eps)

    @property
    def output(self) -> nn.Module:
        """As every decoder's; folding can give a tied head a layer of its own."""
        return self.lm_head if "lm_head" in self else self.embedding

    def head(self, h: mx.array) -> mx.array:
        return settled(*self.stack.norm(h, self.output)).astype(h.dtype)

    def plan(self, names: Any) -> Plan:
        return make_centred_plan(self.folds, self.WRITERS, self.args.num_hidden_layers, names)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """As every decoder's. Weights that are folded, in float32, change the model's form with them."""
        stored = self.stored({name: value.shape for name, value in weights.items()})
        weights = {name: weights[s.name].T if s.transposed else weights[s.name] for name, s in stored.items()}
        plan = self.plan(weights)
        if plan.writers and self.args.arm != "baseline":
            weights = self._folded(weights, plan)
            self._refit(weights, plan)
            return weights
        return {k: self._cast(v) for k, v in weights.items()}

    def _folded(self, weights: dict[str, mx.array], plan: Plan) -> dict[str, mx.array]:
        """The weights behind RMSNorms: consumers folded, writers centred; in float32, rounded once."""
        dtypes = {name: self.args.compute_dtype or value.dtype for name, value in weights.items()}
        weights = {name: value.astype(mx.float32) for name, value in weights.items()}
        if "lm_head" in plan.gain_of and "lm_head.weight" not in weights:
            # the table is about to be centred for look-up; as a head it can't be, for x̂·g + β has a mean
            table = next(f"{p}.weight" for p, m in self.named_modules() if m is self.embedding)
            weights["lm_head.weight"], dtypes["lm_head.weight"] = weights[table], dtypes[table]
        for consumer, step in plan.gain_of.items():
            weight, bias = f"{consumer}.weight", f"{consumer}.bias"
            gain, beta = weights.get(f"{step.norm}.weight"), weights.get(f"{step.norm}.bias")
            weights[weight], folded = fold.fold_affine(weights[weight], weights.get(bias), gain, beta)
            if folded is not None:
                # W β can be large, and common to all logits: in half precision it would cost their last bits
                weights[bias], dtypes[bias] = folded, mx.float32
        for writer in plan.writers:
            weight, bias = f"{writer.name}.weight", f"{writer.name}.bias"
            if writer.is_table:
                weights[weight] = fold.centre(weights[weight])
                continue
            weights[weight], centred = fold.fold_centring(weights[weight], weights.get(bias))
            if centred is not None:
                weights[bias] = centred
        for step in set(plan.gain_of.values()):
            weights.pop(f"{step.norm}.bias", None)
            weights[f"{step.norm}.weight"] = mx.ones(self.args.hidden_size)
        plain = self.args.compute_dtype or mx.float32
        return {name: value.astype(dtypes.get(name, plain)) for name, value in weights.items()}

    def _refit(self, weights: dict[str, mx.array], plan: Plan) -> None:
        """RMSNorms in place of the LayerNorms, a bias for each layer that got one, and a head if that is new."""
        modules = dict(self.named_modules())
        for step in set(plan.gain_of.values()):
            owner, _, name = step.norm.rpartition(".")
            modules[owner][name] = RMS_ARMS[self.args.arm](self.args.hidden_size, self.args.rms_norm_eps)
        if "lm_head.weight" in weights and "lm_head" not in self:
            modules["lm_head"] = self.lm_head = nn.Linear(self.args.hidden_size, self.args.vocab_size, bias=False)
        for consumer in plan.gain_of:
            if f"{consumer}.bias" in weights:
                modules[consumer].bias = mx.zeros(modules[consumer]["weight"].shape[0])
