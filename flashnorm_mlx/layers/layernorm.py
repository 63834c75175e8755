"""LayerNorm in front of projections, for as long as it is one.

``LayerNorm(a) = (a - mean(a))/sqrt(var(a) + ε) ⊙ g + β``. Its bias folds into the projections' biases (§1.1), its mean
is removed by whoever writes ``a`` (§1.2), its gain folds as RMSNorm's does; what is left is RMSNorm without weights, in
the arms of :mod:`.norm`. The forms here are for the arm that folds nothing, and for weights that can't be folded, which
quantised ones can't: what was rounded before can't be centred.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .attention import Gain
from .linear import bias_of, products
from .norm import Fusion, Owed


class LayerNorm(nn.Module):
    """``LayerNorm(a; g, β) Wᵀ + c``: the norm on its own, then the projections. Nothing is folded or deferred.

    Args:
        affine: whether there are a gain and a bias.
    """

    def __init__(self, dims: int, eps: float, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        if affine:
            self.weight = mx.ones((dims,))
            self.bias = mx.zeros((dims,))

    def __call__(self, a: mx.array, *layers: nn.Module) -> Owed:
        y, bias = products(layers, self.normed(a)), bias_of(layers)
        return (y if bias is None else y + bias), None

    def normed(self, a: mx.array) -> mx.array:
        return mx.fast.layer_norm(a, self.get("weight"), self.get("bias"), self.eps)

    def fused(self) -> Fusion:
        return Fusion(prepare=self.normed)


class DeferredLayerNorm(LayerNorm):
    """``((a - mean(a))⊙g Wᵀ)·s + (β Wᵀ + c)``, ``s = 1/sqrt(var(a) + ε)``, where a kernel does the projection.

    The mean and the gain are its input's, as it is read; the scale is deferred (§1), the bias is the product's (§1.1).
    In plain operations the norm stays one of its own.
    """

    def fused(self) -> Fusion:
        return Fusion(eps=self.eps, gain=self.get("weight"), bias=self.get("bias"), centred=True)


class NoLayerNorm(LayerNorm):
    """``a Wᵀ + c``: the norm is left out. Wrong output; the upper bound on the speed of the others."""

    def normed(self, a: mx.array) -> mx.array:
        return a

    def fused(self) -> Fusion:
        return Fusion()


#: The arms before anything is folded. Folding puts :data:`.norm.ARMS` in their place.
ARMS = {"baseline": LayerNorm, "flashnorm": DeferredLayerNorm, "none": NoLayerNorm}


class HeadLayerNorm(nn.Module):
    """A LayerNorm for each head, with gains of their own and no bias: ``[batch, heads, length, dims]``.

    Behind a projection with a bias it cancels no scale, so it stays as it is.
    """

    def __init__(self, heads: int, dims: int, eps: float) -> None:
        super().__init__()
        self.norms = [Gain(dims) for _ in range(heads)]
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return self.gains[:, None] * mx.fast.layer_norm(x, None, None, self.eps)

    @property
    def gains(self) -> mx.array:
        """``[heads, dims]``"""
        return mx.stack([norm["weight"] for norm in self.norms])
