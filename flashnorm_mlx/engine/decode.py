"""The decode step: a model's pass over few new tokens as one compiled graph of fused kernels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import cache as stock

from ..batched import BatchKVCache, BatchRotatingKVCache
from ..cache import KVCache
from ..errors import first_line
from ..kernels.attend import SHORT, TAIL, default_layout
from ..kernels.embed import embed
from ..kernels.packed import Failed
from ..kernels.project import MAX_ROWS
from ..layers.fused import FusedBlock, Projection, Residual
from ..rotating import RotatingKVCache
from .compiled import compiled
from .steps import Steps

if TYPE_CHECKING:
    from .ahead import MadeAhead


Cache = KVCache | RotatingKVCache | BatchKVCache | BatchRotatingKVCache

#: mlx-lm's caches, and ours that take their place.
OURS: dict[type, type[Cache]] = {
    stock.KVCache: KVCache,
    stock.RotatingKVCache: RotatingKVCache,
    stock.BatchKVCache: BatchKVCache,
    stock.BatchRotatingKVCache: BatchRotatingKVCache,
}

#: So many passes over the same number of tokens, more than one, are made without kernels: a short prompt is not worth
#: having them compiled, the steps of a batch or of speculative decoding are.
PATIENCE = 4

#: The kernels count a buffer's elements in 32 bits.
COUNTABLE = 2**31


def next_positions(cache: Cache) -> tuple[int, ...]:
    """Where each sequence's next token stands; one number where all are as long."""
    end = cache.end
    return tuple(end - padding for padding in cache.padding) or (end,)


class DecodeStep:
    """``ids [B, L] -> logits [B, L, V]`` for up to 8 tokens in all, against our caches.

    Args:
        measure: let each projection be done in plain operations where those are faster.
        read: see :meth:`.ahead.MadeAhead.fuse`.

    Raises:
        Uncovered: if a kernel doesn't cover one of the model's layers.
        Failed: if one fails on this device.
    """

    def __init__(
        self, model: MadeAhead, dtype: mx.Dtype, *, measure: bool, read: Callable[[nn.Module], None] | None = None
    ) -> None:
        read, args, output = read or (lambda part: None), model.args, model.output
        # while it moves, a layer's weights are there twice: the largest go first, when there is little else
        for part in (model.stack.norm, *model.tables, output, model.layers[-1]):  # the last leaves a norm to the head
            read(part)
        self.head = Projection(output, dtype, model.stack.norm, pending=model.layers[-1].pending)
        self.tables = [self.head if table is output else Projection(table, dtype) for table in model.tables]
        self.blocks, pending = [], None
        for layer in model.layers:
            read(layer)
            self.blocks.append(layer.fused(dtype, pending))
            pending = layer.pending
        read(model)  # what is in a file when a step is traced would be read in every step
        self.embedding_factor, self.softcap = args.embedding_factor, args.logit_cap
        kinds, self.reads = [], []  # of the layers that have a cache, and which of these caches each layer reads
        for block in self.blocks:
            kind = block.rotation, block.heads.window, block.heads.growth
            if not block.heads.shares:
                kinds.append(kind)
            self.reads.append(len(kinds) - 1 - kinds[::-1].index(kind))  # the newest of its kind
        self.cached = [block for block in self.blocks if not block.heads.shares]
        self.groups = [kinds.index(kind) for kind in dict.fromkeys(kinds)]  # the first of each kind
        self.rows = [Steps(block.heads, block.rotation) for block in (self.cached[i] for i in self.groups)]
        self.group_of = [list(dict.fromkeys(kinds)).index(kind) for kind in kinds]
        self.dtype, self.measure = dtype, measure
        self.seen: Counter[int] = Counter()
        #: Of the last step, which its caches bear, too.
        self.mark: object = object()
        #: That of its tokens.
        self.shape: tuple[int, ...] = ()
        self.tried: dict[tuple[int, int, bool], str] = {}
        self.model = ref(model)
        own = ref(self)  # a compiled function that held this object would keep the weights in memory with it
        self.compiled = compiled(lambda *arrays: own().run(*arrays))  # type: ignore[union-attr]
        for is_long in (False, True):  # both forms of attention, so that nothing is compiled mid-sentence
            if failure := self.failure(1, 1, is_long):
                raise Failed(failure)

    def takes(self, ids: mx.array, cache: list) -> bool:
        """Whether these tokens and caches are what the kernels are for; stock caches become ours on the way."""
        rows = ids.size
        if rows > MAX_ROWS:
            return False
        if rows > 1 and self.seen[rows] < PATIENCE:
            self.seen[rows] += 1
            return False
        if self.goes_on(ids, cache):
            return True
        batch, length = ids.shape
        if any(self.tried.get((batch, length, is_long)) for is_long in (False, True)):
            return False
        if not all(self.is_known(c, block) for c, block in zip(cache, self.cached, strict=True)):
            return False
        for c in cache:
            if type(c) in OURS:
                OURS[type(c)].adopt(c)
        first = cache[0]
        if self.is_beyond_the_tables(ids, cache):
            return False
        if min(positions := next_positions(first)) < 0:  # new tokens that are none see nothing
            return False
        if any(c.waiting != first.waiting for c in cache):  # after a trim: layers with windows give all back for it
            for c in cache:
                c.settle()
        for c, group in zip(cache, self.group_of, strict=True):
            like = cache[self.groups[group]]  # a step's counts are the same for all layers of a group
            if next_positions(c) != positions:
                return False
            if not c.fits(batch, self.dtype):
                return False
            if (type(c), c.appended, c.room) != (type(like), like.appended, like.room):
                return False
        if self.is_too_large(cache, batch, length):
            return False
        return not self.failure(batch, length, self.is_long(cache, length))

    def goes_on(self, ids: mx.array, cache: list) -> bool:
        """Whether this is one more of the last step's kind, on caches that nobody has touched since."""
        if ids.shape != self.shape or any(getattr(c, "mark", None) is not self.mark for c in cache):
            return False
        batch, length = ids.shape
        if cache[0].waiting + length > TAIL and (
            (batch, length, self.is_long(cache, length)) not in self.tried or self.is_too_large(cache, batch, length)
        ):
            return False
        return not self.is_beyond_the_tables(ids, cache)

    def is_beyond_the_tables(self, ids: mx.array, cache: list[Cache]) -> bool:
        """Whether there are more tokens than a table of positions has rows."""
        return any(cache[0].end + ids.shape[1] > table.packed.rows for table in self.tables[1:])

    def is_known(self, cache: Any, block: FusedBlock) -> bool:
        """Whether a layer's cache is of a kind that holds what its attention sees."""
        if type(cache) in (RotatingKVCache, stock.RotatingKVCache):
            return (cache.keep, cache.max_size) == (0, block.heads.window)
        if type(cache) in (BatchRotatingKVCache, stock.BatchRotatingKVCache):
            return cache.max_size == block.heads.window
        return type(cache) in (KVCache, stock.KVCache, BatchKVCache, stock.BatchKVCache)

    @cached_property
    def prompt_blocks(self) -> list[nn.Module]:
        """The model's blocks for many tokens; their kernels are chosen when they are first needed."""
        model = self.model()
        assert model is not None
        return [layer.prompt(self.dtype, measure=self.measure) for layer in model.layers]

    def is_long(self, cache: list[Cache], length: int) -> bool:
        """Whether a layer's buffer is one that attention goes through in parts, or becomes it for the next tokens."""
        return max(c.capacity_for(length) for c in cache) > SHORT

    def is_too_large(self, cache: list[Cache], batch: int, length: int) -> bool:
        """Whether a layer's buffer is, or becomes for the next tokens, larger than the kernels can count."""
        sizes = (2 * batch * block.heads.kv_heads * block.heads.head_dim for block in self.cached)
        return any(size * c.capacity_for(length) >= COUNTABLE for size, c in zip(sizes, cache, strict=True))

    def failure(self, batch: int, length: int, is_long: bool) -> str:
        """Why a step of this shape can't be had, else nothing. Its kernels are chosen, compiled and run once for it."""
        key = batch, length, is_long
        if key not in self.tried:
            self.tried[key] = ""
            try:
                if self.measure:
                    for projection in [p for block in self.blocks for p in block.projections] + [self.head]:
                        projection.choose(batch * length)
                caches = self.blank(batch, 2 * SHORT if is_long else KVCache.step)
                mx.eval(self(mx.zeros((batch, length), mx.int32), caches))
            except (RuntimeError, ValueError) as error:  # a compiler's or a driver's, of any kind
                self.tried[key] = f"{batch} x {length} tokens on this device: {first_line(error)}"
                if (batch, length) != (1, 1):
                    warnings.warn(f"flashnorm: plain operations take the place of {self.tried[key]}", stacklevel=2)
        return self.tried[key]

    def blank(self, batch: int, capacity: int) -> list[Cache]:
        """Caches without content, and so with one buffer for all of a shape; nothing is written to it."""
        caches: list[Cache] = []
        buffers: dict[tuple[int, ...], mx.array] = {}
        for heads in (block.heads for block in self.cached):
            c = KVCache() if heads.window is None else RotatingKVCache(heads.window)
            room = capacity if isinstance(c, KVCache) else min(capacity, c.most)
            shape = 2, batch, heads.kv_heads, room, heads.head_dim
            c.hold(buffers.setdefault(shape, mx.zeros(shape, self.dtype)))
            caches.append(c)
        return caches

    def __call__(self, ids: mx.array, cache: list[Cache]) -> mx.array:
        self.shape = batch, length = ids.shape
        ids = ids.view(mx.int32) if ids.dtype == mx.uint32 else ids.astype(mx.int32)  # one dtype, one kernel
        if cache[0].mark is not self.mark or cache[0].waiting + length > TAIL:
            self.make_room(batch, length, cache)
        steps = [
            rows(c.appended, c.waiting, c.capacity, c.end, length, c.padding or (0,) * batch)
            for rows, c in zip(self.rows, (cache[i] for i in self.groups), strict=True)
        ]
        positions = np.arange(length, dtype=np.int32) + np.int32(next_positions(cache[0]))[:, None]
        places = [ids] + [mx.array(np.broadcast_to(positions, ids.shape)) for _ in self.tables[1:]]
        logits, tails = self.compiled(places, steps, [c.buffer for c in cache], [c.tail for c in cache])
        self.mark = object()
        for c, tail in zip(cache, tails, strict=True):
            c.wait(tail, length, self.mark)
        return logits

    def make_room(self, batch: int, length: int, cache: list[Cache]) -> None:
        """Room for the new tokens in each layer's tail."""
        for c, block in zip(cache, self.cached, strict=True):
            heads, buffer = block.heads, c.buffer
            c.make_room(length, (batch, heads.kv_heads, heads.head_dim), self.dtype)
            if c.buffer is not buffer:
                mx.eval(c.buffer)  # a layer at a time, so that only one is there twice
            size = heads.output_size(batch, length, default_layout(heads, c.capacity), self.dtype)
            if c.tail is None or (c.waiting == 0 and c.tail.size != size):
                c.tail = mx.zeros(size, self.dtype)  # as large as those to come, so that the graph is compiled once

    def run(
        self, places: list[mx.array], steps: list[mx.array], kvs: list[mx.array], tails: list[mx.array]
    ) -> tuple[mx.array, list[mx.array]]:
        """The step itself, pure: cache and tails in, logits and new tails out.

        Args:
            places: which rows of each of the model's tables are looked up; the ids, first.
        """
        model = self.model()
        assert model is not None
        (ids, *others), (first, *rest) = places, self.tables
        batch, length = ids.shape
        x = embed(ids, first.packed, factor=self.embedding_factor)
        for rows, table in zip(others, rest, strict=True):
            x = embed(rows, table.packed, residual=x)
        h, tails = Residual(x, inputs=model.layer_inputs(ids, x.reshape(batch, length, -1))), list(tails)
        for block, i in zip(self.blocks, self.reads, strict=True):
            h, tails[i] = block(h, kvs[i], tails[i], steps[self.group_of[i]], batch=batch, length=length)
        logits, _ = self.head.normed(h, batch * length, self.softcap)
        return logits.flatten()[: batch * length * self.head.packed.rows].reshape(batch, length, -1), tails
