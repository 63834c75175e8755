"""Gemma 4's experts, which stand beside a dense MLP: a router with a norm of its own, and gated MLPs."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .linear import product
from .moe import Experts, Route, largest
from .norm import settled


class Router(nn.Module):
    """``softmax(l of the top k) · per_expert_scale`` with ``l = (RMSNorm(h) ⊙ scale/√n) Wᵀ``.

    Its gain stays, for a checkpoint has it under a name that is no norm's; its norm's scale is deferred onto the
    logits. ``h [batch, length, n]``.

    Args:
        norm: the arm's norm, whose gain is 1.
    """

    def __init__(self, hidden_size: int, experts: int, top_k: int, norm: nn.Module) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, experts, bias=False)
        self.scale = mx.ones((hidden_size,))
        self.per_expert_scale = mx.ones((experts,))
        self.top_k = top_k
        self._norm = norm

    def __call__(self, h: mx.array) -> Route:
        x, s = self._norm.factors(h)
        gain = self["_gain"] if "_gain" in self else self._scaled()
        logits = settled(product(self.proj, (x * gain).astype(h.dtype)), s)
        experts = largest(logits, self.top_k)
        weights = mx.softmax(mx.take_along_axis(logits, experts, axis=-1), axis=-1, precise=True)
        return Route.of(experts, weights * self["per_expert_scale"][experts])

    def pack(self) -> None:
        """Multiply the gain with its factor once."""
        self._gain = self._scaled()

    def _scaled(self) -> mx.array:
        return self["scale"] * self["scale"].size ** -0.5


class RoutedMLP(nn.Module):
    """``Σ weight · expert(norm(h))`` over each token's experts."""

    def __init__(self, hidden_size: int, intermediate_size: int, experts: int, activation: str) -> None:
        super().__init__()
        self.switch_glu = Experts(hidden_size, intermediate_size, experts, activation)

    def __call__(self, norm: nn.Module, h: mx.array, route: Route) -> mx.array:
        x, s = norm.factors(h)
        f = self.switch_glu.gate_up(x, s, route)
        return route.gather(route.project(self.switch_glu.down_proj, f))
