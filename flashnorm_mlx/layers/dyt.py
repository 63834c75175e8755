"""DyT, dynamic tanh, in front of projections: a norm's stand-in without a statistic (§1.1).

``DyT(a) = tanh(α a) ⊙ g + β``. There is no scale to defer, but gain and bias fold as LayerNorm's do.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .. import fold
from .linear import bias_of, products
from .norm import Owed


class DyT(nn.Module):
    """``(tanh(α a) ⊙ g + β) Wᵀ + c``: nothing is folded. ``α [1]``, ``g, β [dims]``."""

    def __init__(self, dims: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = mx.array([alpha])
        self.weight = mx.ones((dims,))
        self.bias = mx.zeros((dims,))

    def __call__(self, a: mx.array, *layers: nn.Module) -> Owed:
        x = mx.tanh(self["alpha"] * a) * self["weight"] + self["bias"]
        return _projected(x, layers)

    def fold_into(self, *layers: nn.Linear) -> FoldedDyT:
        """Fold gain and bias into the layers behind, all of which must be given; returns what is left of the norm.

        ``W* = W diag(g)`` and ``c* = c + W β``, in float32, rounded to the weight's dtype. A layer without a bias gets
        one.

        Raises:
            ValueError: if a layer's input size is not the norm's.
        """
        for layer in layers:
            dtype = layer["weight"].dtype
            bias = layer["bias"].astype(mx.float32) if "bias" in layer else None
            weight, bias = fold.fold_affine(layer["weight"].astype(mx.float32), bias, self["weight"], self["bias"])
            layer.weight = weight.astype(dtype)
            if bias is not None:
                layer.bias = bias.astype(dtype)
        return FoldedDyT(self["alpha"])


class FoldedDyT(nn.Module):
    """``tanh(α a) W*ᵀ + c*``: gain and bias are folded."""

    def __init__(self, alpha: mx.array) -> None:
        super().__init__()
        self.alpha = alpha

    def __call__(self, a: mx.array, *layers: nn.Module) -> Owed:
        return _projected(mx.tanh(self["alpha"] * a), layers)


def _projected(x: mx.array, layers: tuple[nn.Module, ...]) -> Owed:
    y, bias = products(layers, x), bias_of(layers)
    return (y if bias is None else y + bias), None
