"""Families that kernels don't cover, or not all of: one new token in plain operations, compiled between attentions.

On a GPU the host takes longest where one token is decoded: each operation costs it some microseconds, and building the
graph in Python as much again. What lies between two attentions has the same shapes in every step, so it is compiled:
it is built at once, and neighbouring elementwise operations are one.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any
from weakref import ref

import mlx.core as mx

from ..layers.rope import Positions
from .base import Decoder, named_arrays


class PlainDecoder(Decoder):
    """A decoder that can't always be fused; its blocks have ``before``, ``attend`` and ``behind``."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self._pieces: Pieces | None = None

    def __call__(
        self, inputs: mx.array, cache: list | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        if input_embeddings is None and (logits := self.stepped(inputs, cache)) is not None:
            return logits
        if cache and input_embeddings is None and inputs.size == 1 and mx.default_device() == mx.gpu:
            self._pieces = self._pieces or Pieces(self)
            return self._pieces(inputs, self.caches(cache))
        if self._pieces is not None and inputs.shape[1] > 1 and self._pieces.is_stale():
            self._pieces = None
        h, *more = self.opened(inputs, input_embeddings)
        caches = self.caches(cache)
        context = self.context(h, caches)
        for i, (layer, c) in enumerate(zip(self.layers, caches, strict=True)):
            h = self.step(i, layer, h, context, c, *more)
        return self.head(h)

    def caches(self, cache: list | None) -> list:
        """An entry for each layer."""
        return cache or [None] * len(self.layers)


class Pieces:
    """``ids [1, 1] -> logits [1, 1, V]`` by compiled functions: what is in front of, between, and behind attentions."""

    def __init__(self, model: PlainDecoder) -> None:
        self.model = ref(model)  # a compiled function that held the model would keep the weights in memory with it
        self.weights = [a for _, a in named_arrays(model)]
        mx.eval(self.weights)  # what is still to be read from a file would be read in every step
        self.blocks = list(model.layers)
        self.kinds = [block.kind for block in self.blocks]
        own = ref(self)
        self.first = mx.compile(lambda *arrays: own().opening(*arrays))  # type: ignore[union-attr]
        self.between = [mx.compile(partial(_between, *pair)) for pair in pairwise(self.blocks)]
        self.last = mx.compile(lambda *arrays: own().closing(*arrays))  # type: ignore[union-attr]

    def is_stale(self) -> bool:
        """Whether weights were exchanged since they were compiled in (adapters do that)."""
        model = self.model()
        assert model is not None
        now = named_arrays(model)
        return len(now) != len(self.weights) or any(a is not b for (_, a), b in zip(now, self.weights, strict=True))

    def __call__(self, ids: mx.array, cache: list) -> mx.array:
        model = self.model()
        assert model is not None
        context = model.context(ids, cache)
        starts = {kind: _start(positions.offset) for kind, (positions, _) in context.items()}
        (h, *more), qkv = self.first(ids, starts[self.kinds[0]])
        for kind, block, c, piece, after in zip(
            self.kinds, self.blocks, cache, [*self.between, None], [*self.kinds[1:], None], strict=True
        ):
            a = block.attend(qkv, context[kind][1], c)
            if piece is not None:
                h, qkv = piece(h, a, starts[after], *more)
        return self.last(h, a, *more)

    def opening(self, ids: mx.array, start: mx.array) -> tuple[tuple[mx.array, ...], tuple[mx.array, ...]]:
        model, block = self.model(), self.blocks[0]
        assert model is not None
        x = model.opened(ids, None)
        return x, block.before(x[0], Positions(block.kind[1], start, 1))

    def closing(self, h: mx.array, a: mx.array, *more: mx.array) -> mx.array:
        model = self.model()
        assert model is not None
        return model.head(self.blocks[-1].behind(h, a, *more))


def _between(block: Any, after: Any, h: mx.array, a: mx.array, start: mx.array, *more: mx.array) -> Any:
    h = block.behind(h, a, *more)
    return h, after.before(h, Positions(after.kind[1], start, 1))


def _start(offset: int | mx.array) -> mx.array:
    """The new token's position, as what an operation yields: a fresh array lies in the host's memory on CUDA."""
    return mx.negative(mx.array(-offset, mx.int32)) if isinstance(offset, int) else offset
