"""The cache of fused decoding against mlx-lm's own, whatever is done to the two in whatever order."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mlx_lm.models import cache as stock

from flashnorm_mlx.cache import KVCache, size_for
from flashnorm_mlx.kernels.attend import TAIL

BATCH, HEADS, DIM = 2, 3, 32
SHAPE = (BATCH, HEADS, DIM)


def random_tokens(rng: np.random.Generator, count: int) -> tuple[mx.array, mx.array]:
    """Keys and values of new tokens."""
    k, v = rng.normal(size=(2, BATCH, HEADS, count, DIM)).astype(np.float32)
    return mx.array(k), mx.array(v)


def new_tail(cache: KVCache, keys: mx.array, values: mx.array, rng: np.random.Generator) -> mx.array:
    """What the attention kernel makes of a cache's tail: new tokens in their places, other slots as they were."""
    size, count = 2 * BATCH * HEADS * TAIL * DIM, keys.shape[2]
    results = rng.normal(size=7)
    tail = np.full(size, np.nan) if cache.tail is None else np.array(cache.tail)[:size]
    tail = tail.reshape(2, BATCH, HEADS, TAIL, DIM).copy()
    assert cache.waiting + count <= TAIL
    tail[..., cache.waiting : cache.waiting + count, :] = np.stack([np.array(keys), np.array(values)])
    return mx.array(np.concatenate([tail.ravel(), results]).astype(np.float32))


def decode(cache: KVCache, keys: mx.array, values: mx.array, rng: np.random.Generator) -> None:
    """New tokens by way of the tail, as a decode step has them."""
    cache.make_room(keys.shape[2], SHAPE, keys.dtype)
    cache.wait(new_tail(cache, keys, values, rng), keys.shape[2])


def content(cache: KVCache) -> np.ndarray:
    """Keys and values that a cache holds, read without moving any of them."""
    parts = [np.zeros((2, BATCH, HEADS, 0, DIM), np.float32)]
    if cache.buffer is not None:
        assert cache.appended <= cache.capacity
        parts.append(np.array(cache.buffer)[..., : cache.appended, :])
    if cache.waiting:
        tail = np.array(cache.tail)[: 2 * BATCH * HEADS * TAIL * DIM].reshape(2, BATCH, HEADS, TAIL, DIM)
        parts.append(tail[..., : cache.waiting, :])
    return np.concatenate(parts, axis=3)


def content_of_stock(cache: stock.KVCache) -> np.ndarray:
    if cache.keys is None:
        return np.zeros((2, BATCH, HEADS, 0, DIM), np.float32)
    return np.stack([np.array(a)[..., : cache.offset, :] for a in (cache.keys, cache.values)])


def same(ours: Any, theirs: Any) -> None:
    """Two results of stock's own classes."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, mx.array):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    elif isinstance(theirs, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs


class BothCaches(RuleBasedStateMachine):
    """Everything that mlx-lm, the chat and the server do with a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.ours, self.theirs = KVCache(), stock.KVCache()

    @rule(count=st.sampled_from([1, 2, 3, 30, 255, 256, 257, 600]))
    def update(self, count: int) -> None:
        keys, values = random_tokens(self.rng, count)
        same(self.ours.update_and_fetch(keys, values), self.theirs.update_and_fetch(keys, values))
        assert self.ours.waiting == 0

    @rule(counts=st.lists(st.integers(1, 8), min_size=1, max_size=12))
    def decode(self, counts: list[int]) -> None:
        for count in counts:
            keys, values = random_tokens(self.rng, count)
            decode(self.ours, keys, values, self.rng)
            self.theirs.update_and_fetch(keys, values)

    @rule(count=st.one_of(st.integers(0, 40), st.just(10_000)))
    def trim(self, count: int) -> None:
        assert self.ours.trim(count) == self.theirs.trim(count)

    @rule()
    def settle(self) -> None:
        self.ours.settle()
        assert self.ours.waiting == 0

    @precondition(lambda self: not self.theirs.empty())
    @rule()
    def state(self) -> None:
        ours, theirs = KVCache(), stock.KVCache()
        ours.state, theirs.state = self.ours.state, self.theirs.state
        self.ours, self.theirs = ours, theirs

    @precondition(lambda self: not self.theirs.empty())
    @rule()
    def stock_state(self) -> None:
        """Into a stock cache, and from there into one of ours."""
        between = stock.KVCache()
        between.state = self.ours.state
        KVCache.adopt(between)
        self.ours = between

    @rule()
    def adopt(self) -> None:
        self.ours = copy.deepcopy(self.theirs)
        KVCache.adopt(self.ours)
        assert type(self.ours) is KVCache and type(self.theirs) is stock.KVCache
        keys, values = random_tokens(self.rng, 1)
        copy.deepcopy(self.theirs).update_and_fetch(keys, values)

    @precondition(lambda self: not self.theirs.empty())
    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "cache.safetensors")
            stock.save_prompt_cache(file, [self.ours, self.theirs])
            loaded = stock.load_prompt_cache(file)
            assert [type(c) for c in loaded] == [stock.KVCache, stock.KVCache]
            assert loaded[0].offset == self.ours.offset
            mx.eval([c.state for c in loaded])
        KVCache.adopt(loaded[0])
        self.ours, self.theirs = loaded

    @rule(original=st.booleans())
    def copied(self, original: bool) -> None:
        """A copy, and then the other one changes: neither sees anything of that."""
        twins = [self.ours, copy.deepcopy(self.ours)]
        kept, changed = twins if original else twins[::-1]
        decode(changed, *random_tokens(self.rng, 3), self.rng)
        changed.update_and_fetch(*random_tokens(self.rng, 2))
        changed.trim(4)
        self.ours = kept

    @rule(bits=st.sampled_from([4, 8]))
    def quantised(self, bits: int) -> None:
        ours, theirs = (c.to_quantized(group_size=32, bits=bits) for c in (self.ours, self.theirs))
        assert type(ours) is type(theirs) and ours.offset == theirs.offset
        if theirs.keys is not None:
            for name in ("keys", "values"):
                for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
                    same(one[..., : ours.offset, :], other[..., : ours.offset, :])

    @rule(rows=st.integers(1, 3))
    def merged(self, rows: int) -> None:
        """As the server makes a batch of requests: with caches of other lengths, and empty ones."""
        other, keys_and_values = stock.KVCache(), random_tokens(self.rng, 17)
        other.update_and_fetch(*keys_and_values)
        mine = KVCache()
        decode(mine, *keys_and_values, self.rng)
        first = [self.ours, mine, KVCache()][:rows], [self.theirs, other, stock.KVCache()][:rows]
        ours, theirs = (stock.BatchKVCache.merge([one_row(c) for c in caches]) for caches in first)
        if theirs.keys is not None:  # mlx-lm 0.31 can't say the state of an empty batch
            same(ours.state, theirs.state)

    @rule(count=st.integers(1, 3), array=st.booleans(), window=st.sampled_from([None, 5]))
    def mask(self, count: int, array: bool, window: int | None) -> None:
        arguments = {"return_array": array, "window_size": window}
        same(self.ours.make_mask(count, **arguments), self.theirs.make_mask(count, **arguments))

    @rule()
    def arrays(self) -> None:
        """keys and values, as whoever knows a stock cache reads them."""
        if self.theirs.keys is not None:
            for name in ("keys", "values"):
                ours, theirs = (getattr(c, name)[..., : c.offset, :] for c in (self.ours, self.theirs))
                same(ours, theirs)

    @invariant()
    def equal(self) -> None:
        assert self.ours.offset == self.theirs.offset == self.ours.size()
        assert 0 <= self.ours.waiting <= min(TAIL, self.ours.offset)
        assert self.ours.is_trimmable() and self.ours.empty() == self.theirs.empty()
        assert self.ours.nbytes >= self.ours.offset * 2 * BATCH * HEADS * DIM * 4
        np.testing.assert_array_equal(content(self.ours), content_of_stock(self.theirs))


def one_row(cache: stock.KVCache) -> stock.KVCache:
    """A cache of the first sequence only, of the same class: merging wants one sequence a cache."""
    row = copy.deepcopy(cache)
    if isinstance(row, KVCache) and row.buffer is not None:
        row.hold(row.buffer[:, :1])
        if row.tail is not None:
            tail = row.tail[: 2 * BATCH * HEADS * TAIL * DIM].reshape(2, BATCH, HEADS, TAIL, DIM)
            row.tail = tail[:, :1].flatten()
    elif not isinstance(row, KVCache) and row.keys is not None:
        row.keys, row.values = row.keys[:1], row.values[:1]
    return row


TestBothCaches = BothCaches.TestCase
TestBothCaches.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_tokens_that_wait_are_found_by_everyone_who_asks() -> None:
    rng = np.random.default_rng(1)
    parts = [random_tokens(rng, 1) for _ in range(40)]
    cache = KVCache()
    for keys, values in parts:
        decode(cache, keys, values, rng)
    assert (cache.offset, cache.waiting, cache.appended) == (40, 8, 32)
    want = np.concatenate([np.stack([np.array(k), np.array(v)]) for k, v in parts], axis=3)
    np.testing.assert_array_equal(content(cache), want)
    np.testing.assert_array_equal(np.array(cache.values[..., :40, :]), want[1])
    assert cache.waiting == 0
    np.testing.assert_array_equal(np.array(cache.keys[..., :40, :]), want[0])


def test_trimming_takes_what_waits_first() -> None:
    rng = np.random.default_rng(2)
    cache = KVCache()
    cache.update_and_fetch(*random_tokens(rng, 10))
    decode(cache, *random_tokens(rng, 6), rng)
    before = content(cache)
    assert [cache.trim(4), cache.offset, cache.waiting] == [4, 12, 2]
    assert [cache.trim(5), cache.offset, cache.waiting] == [5, 7, 0]
    np.testing.assert_array_equal(content(cache), before[..., :7, :])
    decode(cache, *random_tokens(rng, 1), rng)
    assert [cache.trim(100), cache.offset, cache.waiting] == [8, 0, 0]


def test_capacity_grows_in_few_sizes() -> None:
    """Each is another graph to compile: by 256, and by an eighth of a power of 2 where that is more."""
    rng = np.random.default_rng(3)
    cache, sizes = KVCache(), []
    for _ in range(100):
        cache.update_and_fetch(*random_tokens(rng, 100))
        assert cache.offset <= cache.capacity
        sizes += [cache.capacity] if cache.capacity not in sizes else []
    assert sizes == [*range(256, 4097, 256), *range(4608, 8193, 512), 9216, 10240]
    prompt = KVCache()
    prompt.update_and_fetch(*random_tokens(rng, 700))
    assert prompt.capacity == 768


@given(tokens=st.integers(1, 2**20))
def test_room_that_is_not_needed_is_an_eighth_at_most(tokens: int) -> None:
    size = size_for(tokens)
    assert tokens <= size < tokens + max(256, tokens / 8 + 1)
    assert size_for(size) == size


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_dtype_stays(dtype: mx.Dtype) -> None:
    cache = KVCache()
    keys, values = (a.astype(dtype) for a in random_tokens(np.random.default_rng(4), 3))
    assert cache.update_and_fetch(keys, values)[0].dtype == dtype
    theirs = stock.KVCache()
    theirs.update_and_fetch(keys, values)
    KVCache.adopt(theirs)
    assert theirs.keys.dtype == dtype
    fresh = KVCache()
    fresh.make_room(1, SHAPE, dtype)
    assert fresh.buffer is not None and fresh.buffer.dtype == dtype
