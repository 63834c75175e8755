"""The algebra of FlashNorm (arXiv 2407.09577): arrays in, arrays out.

Conventions: a linear layer is ``y = x Wᵀ + c`` with ``W`` of shape ``[out, in]``, MLX's layout (the paper writes
``x W`` with ``W`` of shape ``[in, out]``; its ``diag(g) W`` is therefore ``W · g`` along the last axis here).
``g``, ``β`` and ``x`` have ``in`` entries, ``c`` has ``out``. Everything is computed in float32 and returned in the
dtype that is asked for, by default that of the array that is rewritten.

RMSNorm has a gain only. LayerNorm has a bias β besides, and subtracts the mean; DyT has gain and bias.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx


def effective_gain(weight: mx.array, *, plus_one: bool = False) -> mx.array:
    """The gain ``g`` that a stored norm weight stands for: ``w``, or ``1 + w`` (Gemma 1 to 3), in float32."""
    weight = weight.astype(mx.float32)
    return 1.0 + weight if plus_one else weight


def identity_gain(weight: mx.array, *, plus_one: bool = False) -> mx.array:
    """The stored weight, of the same shape and dtype, that makes a norm's gain 1: ones, or zeros for ``1 + w``."""
    return mx.zeros_like(weight) if plus_one else mx.ones_like(weight)


def fold_gain(
    weight: mx.array, gain: mx.array, *, plus_one: bool = False, axis: int = -1, dtype: mx.Dtype | None = None
) -> mx.array:
    """``W* = W diag(g)``: a norm's gain goes into the linear layer behind it (§1, "weightless" norm).

    Args:
        weight: ``[..., out, in]``; leading axes (experts) are allowed.
        gain: the norm's stored weight, ``[in]``.
        plus_one: the stored weight is ``g - 1``.
        axis: where the layer's input lies: -1, or -2 of a weight ``[..., in, out]``.

    Raises:
        ValueError: if the gain's length is not the layer's input size.
    """
    if gain.ndim != 1 or gain.shape[0] != weight.shape[axis]:
        raise ValueError(f"a gain of shape {gain.shape} can't be folded into a weight of shape {weight.shape}")
    g = effective_gain(gain, plus_one=plus_one)
    folded = weight.astype(mx.float32) * (g if axis == -1 else g[:, None])
    return folded.astype(dtype or weight.dtype)


def fold_bias(weight: mx.array, beta: mx.array, bias: mx.array | None = None) -> mx.array:
    """``c* = c + W β``: a norm's bias β goes into the bias of the linear layer behind it (§1.1, LayerNorm and DyT).

    ``W`` is the layer's weight *before* its own gain is folded (the norm computes ``x̂·g + β``, so β is not scaled
    by g). Shapes: ``weight [out, in]``, ``beta [in]``, ``bias [out]`` or None. Returns ``[out]``, of the bias' dtype
    (the weight's where there was none).
    """
    # no matrix product, which GPUs may round to TF32
    folded = mx.sum(weight.astype(mx.float32) * beta.astype(mx.float32), axis=-1)
    if bias is None:
        return folded.astype(weight.dtype)
    return (bias.astype(mx.float32) + folded).astype(bias.dtype)


def fold_affine(
    weight: mx.array, bias: mx.array | None, gain: mx.array | None, beta: mx.array | None
) -> tuple[mx.array, mx.array | None]:
    """``W* = W diag(g)``, ``c* = c + W β``: both parameters of a norm ``x̂·g + β`` at once (§1.1, LayerNorm and DyT).

    Shapes: ``weight [out, in]``, ``bias [out]``, ``gain`` and ``beta`` ``[in]``; None: the norm, or the layer, has
    none. Returns the weight, and the bias that the layer has then, if it has one.

    Raises:
        ValueError: if the gain's length is not the layer's input size.
    """
    if beta is not None:  # first, while W has no gain in it
        bias = fold_bias(weight, beta, bias)
    return weight if gain is None else fold_gain(weight, gain), bias


def fold_centring(weight: mx.array, bias: mx.array | None = None) -> tuple[mx.array, mx.array | None]:
    """``V* = V - s/n``: the layer *in front of* a LayerNorm writes a vector of mean zero (§1.2).

    ``s`` holds the sums over the ``n`` output channels, so ``V* x = V x - mean(V x)``; LayerNorm becomes RMSNorm.
    Every writer of the residual must be centred, an embedding (``axis = -1``) by :func:`centre`.
    Shapes: ``weight [out, in]``, ``bias [out]``; the mean is over ``out``.
    """
    w = weight.astype(mx.float32)
    centred = (w - mx.mean(w, axis=-2, keepdims=True)).astype(weight.dtype)
    return centred, None if bias is None else centre(bias)


def centre(vectors: mx.array) -> mx.array:
    """``x - mean(x)`` over the last axis: rows of an embedding table, or a bias (§1.2)."""
    x = vectors.astype(mx.float32)
    return (x - mx.mean(x, axis=-1, keepdims=True)).astype(vectors.dtype)


def fold_root_mean(weight: mx.array) -> mx.array:
    """``W* = √n W``: turns the mean into a sum (appendix B), so that ``x/RMS(x) Wᵀ = x/RSS(x) W*ᵀ``.

    ``RSS(x) = sqrt(Σx² + nε)`` (see :func:`inverse_rss`); ``n`` is the layer's input size.
    """
    return (weight.astype(mx.float32) * weight.shape[-1] ** 0.5).astype(weight.dtype)


def inverse_rms(x: mx.array, eps: float | mx.array = 0.0) -> mx.array:
    """``s = 1/RMS(x) = 1/sqrt(mean(x²) + ε)`` over the last axis, kept; float32 ``[..., 1]`` (§1; ε: appendix A)."""
    return _inverse_root(_sum_of_squares(x), 1 / x.shape[-1], eps)


def inverse_rss(x: mx.array, eps: float = 0.0) -> mx.array:
    """``1/sqrt(Σx² + nε)`` over the last axis, kept; float32 ``[..., 1]`` (appendix B). Equal to ``s/√n``."""
    return _inverse_root(_sum_of_squares(x), 1.0, x.shape[-1] * eps)


def _sum_of_squares(x: mx.array) -> mx.array:
    return mx.sum(mx.square(x.astype(mx.float32)), axis=-1, keepdims=True)


@partial(mx.compile, shapeless=True)
def _inverse_root(total: mx.array, factor: float, eps: float | mx.array) -> mx.array:
    return mx.rsqrt(total * factor + eps)


def cancelled_eps(eps: float, scale: mx.array | None) -> float | mx.array:
    """``ε/s²``: the ε that a second norm needs when the first one's scale ``s`` is left out in front of it (§4.1).

    ``RMSNorm(s·p; ε) = s·p / sqrt(s² mean(p²) + ε) = p / sqrt(mean(p²) + ε/s²) = RMSNorm(p; ε/s²)``: exact.
    Keeping ε is not (up to 3e-2 relative at a residual RMS of 0.02). ``scale`` None means nothing was left out.
    """
    return eps if scale is None else eps / (scale * scale)


def owed_at_the_output(scale: mx.array, kind: str) -> mx.array:
    """What a feed-forward network's output is multiplied by where its projections read ``a`` in place of ``s·a`` (§2).

    - ``relu`` (§2.1): ``relu(s·a Uᵀ) Dᵀ = s · relu(a Uᵀ) Dᵀ``, for s > 0
    - ``glu`` (§2.2), any activation, its gate scaled: ``(act(s·a Gᵀ) ⊙ s·a Uᵀ) Dᵀ = s · (act(s·a Gᵀ) ⊙ a Uᵀ) Dᵀ``
    - ``reglu``, and ``bilinear`` without an activation: ``s² · (relu(a Gᵀ) ⊙ a Uᵀ) Dᵀ``, where ``s² = 1/(MS(a) + ε)``

    None of it holds where U, or a gate that isn't scaled, has a bias. This package's blocks don't use it: within one
    kernel it saves nothing, and in float16 the unscaled product overflows (from an RMS of a of some hundreds on).
    bench/multipliers.py counts what it would save.

    Raises:
        ValueError: for another kind.
    """
    if kind in ("relu", "glu"):
        return scale
    if kind in ("reglu", "bilinear"):
        return scale * scale
    raise ValueError(f"a feed-forward network of the kind {kind!r}: relu, glu, reglu and bilinear are known")


def joint_gain(q_gain: mx.array, k_gain: mx.array) -> mx.array:
    """``g_Q ⊙ g_K``, for q alone: ``(g_Q ⊙ q)·(g_K ⊙ k) = (g_Q ⊙ g_K ⊙ q)·k`` (§4.2, channels that RoPE doesn't turn).

    Not used where keys are cached with their gain, as mlx-lm's caches have them.
    """
    return q_gain.astype(mx.float32) * k_gain.astype(mx.float32)
