"""The mixture of experts: router, routed experts, shared experts; in the block's two operations, as the gated MLP is.

Router, routed and shared experts all consume one norm: its gain is folded into each of them, and its scale is owed to
the router's logits and, inside the activation, to every gate and up projection.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from .linear import products, stack_into
from .mlp import GatedMLP, gated, gated_halves
from .norm import Owed, settled

#: From so many products on, they are sorted by expert, so that each expert's weights are read once.
SORTED_FROM = 64


class Route(NamedTuple):
    """Which experts the tokens go to: ``experts`` and ``weights [batch, length, k]``.

    ``order`` sorts the products by expert; None: they stay in the tokens' order.
    """

    experts: mx.array
    weights: mx.array
    order: mx.array | None

    @classmethod
    def of(cls, experts: mx.array, weights: mx.array) -> Route:
        return cls(experts, weights, mx.argsort(experts.flatten()) if experts.size >= SORTED_FROM else None)

    def project(self, layer: nn.Module, x: mx.array) -> mx.array:
        """Each of :meth:`spread`'s vectors by its expert's matrix, in x's dtype."""
        wide = x.astype(mx.float32) if mx.default_device() == mx.cpu else x  # MLX's gather_mm has no other on the CPU
        if self.order is None:
            return gathered(layer, wide, self.experts).astype(x.dtype)
        return layer(wide, self.experts.flatten()[self.order], sorted_indices=True).astype(x.dtype)

    def spread(self, x: mx.array) -> mx.array:
        """``[batch, length, n]`` as the experts take it: ``[batch, length, 1, 1, n]``, or sorted ``[b·l·k, 1, n]``."""
        if self.order is None:
            return x[..., None, None, :]
        return x.flatten(0, -2)[self.order // self.experts.shape[-1]][:, None]

    def gather(self, y: mx.array) -> mx.array:
        """``Σ weight · y`` over each token's experts: ``[batch, length, n]``, in y's dtype."""
        y = y.squeeze(-2)
        if self.order is None:
            return (self.weights.astype(y.dtype)[..., None, :] @ y).squeeze(-2)
        y = mx.unflatten(y[mx.argsort(self.order)], 0, self.experts.shape)
        return (y * self.weights[..., None]).sum(axis=-2).astype(y.dtype)


def gathered(layer: nn.Module, x: mx.array, experts: mx.array) -> mx.array:
    """``layer(x, experts)``, with the numbers of x's vectors made once: MLX makes and spreads them in every call."""
    if "bias" in layer or type(layer) not in (SwitchLinear, QuantizedSwitchLinear):
        return layer(x, experts)
    rows = _rows(tuple(experts.shape), x.shape[-3])
    if type(layer) is SwitchLinear:
        weight = layer["weight"].swapaxes(-1, -2)
        return mx.gather_mm(x, weight, lhs_indices=rows, rhs_indices=experts)
    if getattr(layer, "global_scale", None) is not None:
        return layer(x, experts)
    return mx.gather_qmm(
        x,
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        lhs_indices=rows,
        rhs_indices=experts,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


@cache
def _rows(shape: tuple[int, ...], each: int) -> mx.array:
    """The number of the vector that each of a token's products is of; ``each``: vectors a token, 1 or all."""
    batch, length, products = shape
    numbers = mx.arange(batch * length * each, dtype=mx.uint32).reshape(batch, length, each)
    rows = mx.contiguous(mx.broadcast_to(numbers, (batch, length, products)))
    mx.eval(rows)
    return rows


class Router(nn.Module):
    """Chooses ``top_k`` of the experts for each token, from the ``groups_kept`` best of ``groups`` groups of them.

    Args:
        factor: multiplies the experts' weights.
    """

    def __init__(
        self, hidden_size: int, experts: int, top_k: int, *, groups: int = 1, groups_kept: int = 1, factor: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, hidden_size))
        self.top_k, self.groups, self.groups_kept, self.factor = top_k, groups, groups_kept, factor

    def best(self, scores: mx.array, group_scores: mx.array | None) -> mx.array:
        """The chosen experts ``[..., top_k]``; ``scores [..., experts]``, ``group_scores [..., groups]``.

        Scores outside the groups that are kept count as 0.
        """
        if group_scores is None:
            return largest(scores, self.top_k)
        left_out = self.groups - self.groups_kept
        worst = mx.argpartition(group_scores, kth=left_out - 1, axis=-1)[..., :left_out, None]
        negative = mx.unflatten(-scores, -1, (self.groups, -1))
        negative = mx.put_along_axis(negative, worst, mx.array(0, scores.dtype), axis=-2).flatten(-2)
        return mx.argpartition(negative, kth=self.top_k - 1, axis=-1)[..., : self.top_k]

    def grouped(self, scores: mx.array) -> mx.array | None:
        """``[..., groups, experts of one]``; None where every group is kept."""
        return mx.unflatten(scores, -1, (self.groups, -1)) if self.groups_kept < self.groups else None


def largest(scores: mx.array, k: int) -> mx.array:
    """Where the ``k`` largest are, in no order."""
    return mx.argpartition(scores, kth=-k, axis=-1)[..., -k:]


class SoftmaxRouter(Router):
    """``weight = factor · softmax(logits)``, not normed over the chosen; a group counts by its best expert (V2)."""

    def __call__(self, logits: mx.array) -> Route:
        scores = mx.softmax(logits, axis=-1, precise=True)
        grouped = self.grouped(scores)
        experts = self.best(scores, None if grouped is None else grouped.max(axis=-1))
        weights = mx.take_along_axis(scores, experts, axis=-1)
        return Route.of(experts, weights if self.factor == 1.0 else self.factor * weights)


class SigmoidRouter(Router):
    """``weight = factor · sigmoid(logits)``; experts are chosen with a bias, a group by its best two (V3).

    Args:
        normed: the chosen experts' weights are divided by their sum, before the factor.
    """

    def __init__(self, hidden_size: int, experts: int, top_k: int, *, normed: bool, **options: int | float) -> None:
        super().__init__(hidden_size, experts, top_k, **options)  # type: ignore[arg-type]
        self.e_score_correction_bias = mx.zeros((experts,))
        self.normed = normed

    def __call__(self, logits: mx.array) -> Route:
        scores = mx.sigmoid(logits.astype(mx.float32))
        biased = scores + self.e_score_correction_bias
        grouped = self.grouped(biased)
        experts = self.best(biased, None if grouped is None else mx.topk(grouped, 2, axis=-1).sum(axis=-1))
        weights = mx.take_along_axis(scores, experts, axis=-1)
        if self.normed and self.top_k > 1:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return Route.of(experts, self.factor * weights)


class Experts(nn.Module):
    """Gated MLPs side by side; the weights are ``[experts, out, in]``."""

    def __init__(self, hidden_size: int, intermediate_size: int, experts: int, activation: str = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = SwitchLinear(hidden_size, intermediate_size, experts, bias=False)
        self.up_proj = SwitchLinear(hidden_size, intermediate_size, experts, bias=False)
        self.down_proj = SwitchLinear(intermediate_size, hidden_size, experts, bias=False)

    def gate_up(self, x: mx.array, s: mx.array | None, route: Route) -> mx.array:
        """``activation(gate·s) ⊙ (up·s)`` of each token's experts."""
        x, s = route.spread(x), None if s is None else route.spread(s)
        if "gate_up_proj" in self:
            return gated_halves(route.project(self.gate_up_proj, x), s, self.activation)
        return gated(route.project(self.gate_proj, x), route.project(self.up_proj, x), s, self.activation)

    def pack(self) -> None:
        """Lay each expert's gate and up out as one matrix, where their formats allow it."""
        if "gate_proj" in self and {*self.gate_proj} <= {"weight", "scales", "biases"}:
            stack_into(self, "gate_up_proj", ("gate_proj", "up_proj"))


class Activations(NamedTuple):
    """Between the block's two operations."""

    route: Route
    routed: mx.array
    shared: mx.array | None


class MoE(nn.Module):
    """``Σ weight · expert(h) + shared(h)``; ``shared`` is the width of the shared experts in all, 0: none."""

    def __init__(self, router: Router, intermediate_size: int, shared: int) -> None:
        super().__init__()
        experts, hidden_size = router.weight.shape
        self.gate = router
        self.switch_mlp = Experts(hidden_size, intermediate_size, experts)
        if shared:
            self.shared_experts = GatedMLP(hidden_size, shared)

    def gate_up(self, norm: nn.Module, h: mx.array) -> Activations:
        """Norm → route → project → gated activation; the norm is computed once, for all who consume it."""
        x, s = norm.factors(h)

        def normed(x: mx.array, *layers: nn.Module) -> Owed:
            return products(layers, x), s

        route = self.gate(settled(*normed(x, self.gate)))
        shared = self.shared_experts.gate_up(normed, x) if "shared_experts" in self else None
        return Activations(route, self.switch_mlp.gate_up(x, s, route), shared)

    def down_proj(self, f: Activations) -> mx.array:
        """The experts' down projections, weighted, plus the shared ones'."""
        y = f.route.gather(f.route.project(self.switch_mlp.down_proj, f.routed))
        return y if f.shared is None else y + self.shared_experts.down_proj(f.shared)


_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.(\w+)")


def stacked(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Experts that are stored one by one, ``….experts.3.up_proj.weight``, as ``….switch_mlp.up_proj.weight``."""
    out: dict[str, mx.array] = {}
    parts: dict[str, dict[int, mx.array]] = {}
    for name, value in weights.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            out[name] = value
        else:
            mlp, expert, projection, kind = match.groups()
            parts.setdefault(f"{mlp}.switch_mlp.{projection}.{kind}", {})[int(expert)] = value
    return out | {name: mx.stack([found[i] for i in sorted(found)]) for name, found in parts.items()}
