"""The join of a norm to the projections behind it: the one place where the three arms differ.

Each arm is called as ``norm(a, *layers)`` and returns ``(y, s)``, a pair whose value is ``y·s``: the products of all
the layers side by side, and the scale that is still owed to them (``[..., 1]``, float32; None: nothing is owed). Who
consumes the pair decides where the scale goes: into RoPE's tables, the activation, a second norm (where it cancels),
or plainly onto ``y`` (:func:`settled`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .. import fold
from .linear import bias_of, products

Owed = tuple[mx.array, mx.array | None]

#: A norm as an operation of its own: its gain, and ε.
Explicit = tuple[mx.array | None, float]


class Fusion(NamedTuple):
    """What of a norm remains where a kernel does the projection behind it."""

    #: An operation in front of the kernel.
    prepare: Callable[[mx.array], mx.array] | None = None
    #: That of the scale that the kernel applies; None: it applies none.
    eps: float | None = None
    #: What the kernel multiplies its input with.
    gain: mx.array | None = None
    #: Of a LayerNorm: what the kernel's input was to be added, so that its product is added to the result.
    bias: mx.array | None = None
    #: Whether the kernel takes the mean off its input.
    centred: bool = False


def settled(y: mx.array, scale: mx.array | None) -> mx.array:
    """``y·s`` in y's dtype; a float32 scale would otherwise promote the activations behind it."""
    return y if scale is None else (y * scale).astype(y.dtype)


def biased(y: mx.array, scale: mx.array | None, bias: mx.array) -> mx.array:
    """``y·s + bias`` in y's dtype, rounded once where the scale or the bias is in float32."""
    return ((y if scale is None else y * scale) + bias).astype(y.dtype)


def weightless_norm(a: mx.array, eps: float) -> mx.array:
    """``a / sqrt(mean(a²) + ε)`` over the last axis, by MLX's kernel.

    With no gain that kernel gets a scalar 1, which CUDA keeps in the host's memory: each row's threads fetch it across
    the bus (2,048 rows of 576: 21 µs instead of 4). So there is a gain, of ones.
    """
    return mx.fast.rms_norm(a, _ones(a.shape[-1], a.dtype), eps)


@cache
def _ones(dims: int, dtype: mx.Dtype) -> mx.array:
    ones = mx.ones((dims,), dtype)
    mx.eval(ones)  # what is first asked for as a step is traced would be computed in every step
    return ones


def deferring_pays(a: mx.array) -> bool:
    """Whether the scale of ``a`` is to be deferred, in plain operations.

    Not in float16, where the unscaled product can overflow, and not on a GPU, where the separate launches of a
    deferred scale cost more than MLX's fused rms_norm (decode of the demo, float32, H200: 0.73 of mlx-lm's speed
    deferred, 0.89 with the explicit norm). A kernel that scales in its own epilogue has neither problem.
    """
    return a.dtype != mx.float16 and mx.default_device() == mx.cpu


class Norm(nn.Module):
    """What the arms share: the products of ``x·s``, the normed vector's factors, and the scale left over."""

    def __call__(self, a: mx.array, *layers: nn.Module, owed: mx.array | None = None) -> Owed:
        """The norm of ``a·owed``, projected. ``owed``: the scale of a norm in front, which was not applied to ``a``."""
        x, s = self.factors(a, owed)
        y, bias = products(layers, x), bias_of(layers)
        return (y, s) if bias is None else (biased(y, s, bias), None)

    def factors(self, a: mx.array, owed: mx.array | None = None) -> Owed:
        """``x`` and ``s``, whose product is the norm of ``a·owed``; without a gain that was folded."""
        raise NotImplementedError


class BaselineNorm(Norm):
    """``RMSNorm(a; g) Wᵀ + c``: the norm on its own, then the projections. Nothing is folded or deferred."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def factors(self, a: mx.array, owed: mx.array | None = None) -> Owed:
        return mx.fast.rms_norm(settled(a, owed), self["weight"], self.eps), None

    def pack(self) -> None:
        """Nothing to lay out anew."""

    def fused(self) -> Fusion:
        return Fusion(prepare=lambda a: mx.fast.rms_norm(a, self["weight"], self.eps))

    def explicit(self) -> Explicit:
        return self["weight"], self.eps


class FlashNorm(Norm):
    """``(a W*ᵀ)·s + c`` with ``W* = W diag(g)`` and ``s = 1/RMS(a)``: gain folded, scale deferred (§1).

    A gain that could not be folded (a tied head, a quantised projection) stays as ``weight`` and multiplies ``a``;
    the scale is deferred all the same. A layer with a bias is settled at once, for the scale goes in front of it.
    A scale that is owed from a norm in front cancels, and ε becomes ε/s² (§4.1).

    Where deferring does not pay (:func:`deferring_pays`), the weightless norm comes first, ``(a·s) W*ᵀ``: the same
    value, the gain folded as before.
    """

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def factors(self, a: mx.array, owed: mx.array | None = None) -> Owed:
        gain = self.get("weight")
        if not deferring_pays(a):
            a = settled(a, owed)
            return (weightless_norm(a, self.eps) if gain is None else mx.fast.rms_norm(a, gain, self.eps)), None
        s = fold.inverse_rms(a, fold.cancelled_eps(self.eps, owed))
        return (a if gain is None else (a * gain).astype(a.dtype)), s

    def pack(self) -> None:
        """Drop a gain that is 1 everywhere: it was folded."""
        if mx.all(self["weight"] == 1).item():
            self.pop("weight")

    def fused(self) -> Fusion:
        return Fusion(eps=self.eps, gain=self.get("weight"))

    def explicit(self) -> Explicit:
        return self.get("weight"), self.eps


class Unnormed(Norm):
    """``a Wᵀ + c``: where there is no norm, or its work is done."""

    def factors(self, a: mx.array, owed: mx.array | None = None) -> Owed:
        return settled(a, owed), None

    def fused(self) -> Fusion:
        return Fusion()

    def explicit(self) -> None:
        return None


class NoNorm(Unnormed):
    """The norm is left out. Wrong output; the upper bound on the speed of the other two."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))

    def pack(self) -> None:
        """Drop the gain: nothing reads it."""
        self.pop("weight")


class PostNorm(nn.Module):
    """``RMSNorm(p; g)`` of what a block adds to the residual. It feeds no projection, so it is the same in all arms."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def __call__(self, p: mx.array) -> mx.array:
        return mx.fast.rms_norm(p, self["weight"], self.eps)


@partial(mx.compile, shapeless=True)
def add_clipped(h: mx.array, p: mx.array) -> mx.array:
    """``h + p``, clipped to what float16 holds where that is the dtype: a post-norm's gain can be large."""
    if h.dtype != mx.float16:
        return h + p
    most = 65504.0
    return mx.clip(h.astype(mx.float32) + p.astype(mx.float32), -most, most).astype(mx.float16)


ARMS = {"baseline": BaselineNorm, "flashnorm": FlashNorm, "none": NoNorm}
