"""What decoding one token costs a shape, counted from its config: bytes read, and launches.

Bytes are those of the weights that a token reads (no looked-up tables, no idle experts), quantised as mlx-lm and
``flashnorm convert`` do it, and of the cache. Activations are left out.

Launches are about as many as there are:

- ``mlx-lm``: one a projection (the head included) and one a norm; 8 more a block (RoPE, write and append of the cache
  twice each, attention, activation, two additions: with a Llama block's 7 projections and 2 norms, 17); embedding,
  log-softmax and argmax. Gates and sorting of experts are not counted.
- ``mlx-lm, no norms``: the same without the norms' launches.
- ``flashnorm``: our kernels' five a block, or as many as it says; each table, head and argmax. ``none``: the same. So
  the model can't tell the two apart, by construction. ``baseline``: one more for each norm that FlashNorm takes off
  the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .. import architectures
from ..architectures.base import Decoder, named_arrays
from ..layers.layernorm import LayerNorm
from ..layers.norm import BaselineNorm, PostNorm
from ..layers.qkv_norm import QKVNormAttention

_BLOCK_EXTRAS = 8
_STEP_EXTRAS = 3
_FUSED_EXTRAS = 3


@dataclass(frozen=True)
class Footprint:
    """One token's bytes, and the launches of each arm that can be counted."""

    bytes: int
    launches: dict[str, int]


def footprint(config: dict[str, Any], *, bits: int = 4, group_size: int = 64, depth: int = 0) -> Footprint:
    """A token's bytes and launches behind ``depth`` others; ``bits`` 0: weights in 16 bits. The cache has 16 bits.

    Raises:
        FlashNormError: for a config that can't be run, as :func:`flashnorm_mlx.load` does it.
    """
    family = architectures.find(config.get("model_type"))
    model: Decoder = family.Model(family.Config.from_dict({**config, "arm": "baseline"}))
    args = model.args
    tables = model.looked_up
    read = {name: a for name, a in named_arrays(model) if name.rpartition(".")[0] not in tables}
    weights = sum(_nbytes(name, a, bits, group_size) * model.read_share(name) for name, a in read.items())
    return Footprint(
        bytes=round(weights) + depth * args.cache_width_of_all * 2,
        launches=_launches(model, read),
    )


def _nbytes(name: str, array: mx.array, bits: int, group_size: int) -> float:
    """A tensor's bytes; where it is quantised, a scale and a bias of 16 bits go with each group."""
    quantised = bits and name.endswith("weight") and array.ndim >= 2 and array.shape[-1] % group_size == 0
    return array.size * (bits + 32 / group_size if quantised else 16) / 8


def _launches(model: Decoder, read: dict[str, mx.array]) -> dict[str, int]:
    weights = [a for name, a in read.items() if name.endswith("weight")]
    projections = sum(a.ndim >= 2 for a in weights)
    weightless = sum(
        (isinstance(m, LayerNorm) and "weight" not in m) or (isinstance(m, QKVNormAttention) and not m.shares)  # of v
        for _, m in model.named_modules()
    )
    norms = sum(a.ndim == 1 for a in weights) + weightless
    blocks = model.args.num_hidden_layers
    stock = projections + _BLOCK_EXTRAS * blocks + _STEP_EXTRAS
    out = {"mlx-lm": stock + norms, "mlx-lm, no norms": stock}
    dense = all(a.ndim <= 2 for a in weights)
    if dense and type(model).fuse is Decoder.fuse:  # the others have none
        fused = sum(layer.launches for layer in model.layers) + _FUSED_EXTRAS + len(model.tables) - 1
        explicit = sum(isinstance(module, BaselineNorm | PostNorm | LayerNorm) for _, module in model.named_modules())
        out |= {"baseline": fused + explicit, "flashnorm": fused, "none": fused}
    return out
