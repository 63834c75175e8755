"""A layer's constants as one buffer, so that a launch has one input for them; the layer keeps views of it.

``[W | scales | biases | bias | gain | post_gain | factor]``: the first three as the layer holds them, row by row, the
others in float32, each starting at a multiple of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


class Uncovered(Exception):
    """What the kernels can't run, in words."""


class Failed(Uncovered):
    """What there is a kernel for, but this device or its compiler won't run it."""


@dataclass(frozen=True, eq=False)
class Packed:
    """``W [rows, columns]`` in ``bits`` (4 and 8: affine groups of ``group_size``; 16, 32: plain), in one buffer."""

    buffer: mx.array
    rows: int
    columns: int
    bits: int
    group_size: int
    dtype: mx.Dtype
    bias: bool
    gain: bool
    post_gain: bool = False
    factor: bool = False


def uncovered(layer: nn.Module, dtype: mx.Dtype) -> str | None:
    """Why the kernels can't run a layer on activations of ``dtype``; None where they can."""
    weight = layer["weight"]
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        if layer.mode != "affine" or layer.bits not in (4, 8) or layer.group_size not in (32, 64, 128):
            return f"{layer.mode} quantisation with {layer.bits} bits in groups of {layer.group_size}"
        if layer["scales"].dtype != dtype:
            return f"scales of dtype {_name(layer['scales'].dtype)} with activations in {_name(dtype)}"
        return None
    if weight.dtype != dtype:
        return f"weights of dtype {_name(weight.dtype)} with activations in {_name(dtype)}"
    if weight.shape[1] * weight.itemsize % 16:
        return f"rows of {weight.shape[1]} {_name(dtype)} weights, which are no multiple of 16 bytes"
    return None


def pack(
    layer: nn.Module,
    dtype: mx.Dtype,
    gain: mx.array | None = None,
    post_gain: mx.array | None = None,
    factor: mx.array | None = None,
    *,
    norm_bias: mx.array | None = None,
) -> Packed:
    """One buffer with all of a layer; the layer's own arrays become views of it, so nothing is held twice.

    Args:
        layer: a linear layer or an embedding.
        gain: multiplies the input, where it could not be folded into the weights; ``[columns]``.
        post_gain: of a post-norm that is pending when the layer is reached; ``[columns]``.
        factor: what the sum of residual and post-norm is multiplied by; ``[1]``.
        norm_bias: was to be added to the normed input; its product is added to the layer's bias; ``[columns]``.

    Raises:
        Uncovered: if the kernels have no form for the layer's weights.
    """
    if reason := uncovered(layer, dtype):
        raise Uncovered(reason)
    quantised = isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    bits = layer.bits if quantised else 8 * dtype.size
    rows, words = layer["weight"].shape[0], layer["weight"].nbytes // layer["weight"].shape[0] // 4
    names = ("weight", "scales", "biases") if quantised else ("weight",)
    bias = layer.get("bias")
    if norm_bias is not None:
        product = layer.as_linear if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding) else layer
        bias = product(norm_bias.astype(mx.float32)[None]).flatten()
    extras = [a for a in (bias, gain, post_gain, factor) if a is not None]
    parts = [_words(layer[name]) for name in names] + [_words(a.astype(mx.float32)) for a in extras]
    buffer = mx.concatenate(parts) if len(parts) > 1 else parts[0]
    mx.eval(buffer)
    at = 0
    for name, part in zip(names, parts, strict=False):
        old = layer[name]
        layer[name] = buffer[at : at + part.size].view(old.dtype)[: old.size].reshape(old.shape)
        at += part.size
    mx.eval([layer[name] for name in names])
    group_size = layer.group_size if quantised else 32
    return Packed(
        buffer,
        rows,
        words * 32 // bits,
        bits,
        group_size,
        dtype,
        bias is not None,
        gain is not None,
        post_gain is not None,
        factor is not None,
    )


def _words(a: mx.array) -> mx.array:
    """An array's bytes as uint32, padded to a multiple of 16 bytes."""
    flat = a.flatten()
    if pad := -flat.nbytes % 16:
        flat = mx.concatenate([flat, mx.zeros(pad // flat.itemsize, flat.dtype)])
    return flat.view(mx.uint32)


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
