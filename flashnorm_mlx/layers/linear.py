"""Linear layers without their bias, and several of them as one matrix product."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..errors import FlashNormError


def product(layer: nn.Module, x: mx.array) -> mx.array:
    """``x Wᵀ``: a layer's matrix product, without its bias.

    A deferred scale belongs between the product and the bias, so the two can't stay one call. ``layer`` is a linear
    layer or an embedding table (a tied head), full-precision or quantised. Shapes: ``[..., in] -> [..., out]``.

    Raises:
        FlashNormError: for a layer that has no weights of its own, as an adapter (LoRA) around a projection has none.
    """
    if "weight" not in layer:
        raise FlashNormError(
            f"{type(layer).__name__} in the place of a linear layer is not supported: it has no weights of its own, "
            "which norms are folded into; fuse adapters into the weights first (mlx_lm.fuse)"
        )
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return mx.quantized_matmul(
            x,
            layer["weight"],
            scales=layer["scales"],
            biases=layer.get("biases"),
            transpose=True,
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
    return x @ layer["weight"].T


def bias_of(layers: Sequence[nn.Module]) -> mx.array | None:
    """The biases of several layers, one after the other ``[sum of out]``; None where no layer has one."""
    if not any("bias" in layer for layer in layers):
        return None
    parts = [layer["bias"] if "bias" in layer else mx.zeros(layer["weight"].shape[0]) for layer in layers]
    return mx.concatenate(parts)


def products(layers: Sequence[nn.Module], x: mx.array) -> mx.array:
    """The products of several layers with one input, side by side: ``[..., in] -> [..., sum of out]``."""
    if len(layers) == 1:
        return product(layers[0], x)
    return mx.concatenate([product(layer, x) for layer in layers], axis=-1)


def stacked(layers: Sequence[nn.Module]) -> nn.Module | None:
    """One layer whose rows are those of ``layers``, in order; None where their formats differ.

    ``[q; k; v] x`` is one product instead of three. Only the layout in memory changes, never a value.
    """
    first = layers[0]
    if any(_format(layer) != _format(first) for layer in layers):
        return None
    joint = copy.copy(first)
    for name in first:
        if name != "bias":
            joint[name] = mx.concatenate([layer[name] for layer in layers], axis=-2)
    bias = bias_of(layers)
    if bias is not None:
        joint["bias"] = bias.astype(next(layer["bias"].dtype for layer in layers if "bias" in layer))
    return joint


def _format(layer: nn.Module) -> tuple:
    """What must agree for rows of two layers to lie in one matrix, or in one matrix for each expert."""
    quantised = (layer.group_size, layer.bits, layer.mode) if "scales" in layer else ()
    shapes = {name: (*layer[name].shape[:-2], layer[name].shape[-1]) for name in layer if name != "bias"}
    parts = tuple((name, layer[name].dtype, shape) for name, shape in sorted(shapes.items()))
    return type(layer), quantised, parts


def stack_into(owner: nn.Module, name: str, parts: Sequence[str]) -> None:
    """Replace the layers ``parts`` of ``owner`` by one layer ``name``, where their formats allow it."""
    joint = stacked([owner[part] for part in parts])
    if joint is not None:
        for part in parts:
            owner.pop(part)
        owner[name] = joint
