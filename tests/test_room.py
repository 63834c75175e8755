"""Room for the next tokens in the caches of a fused step: memory, tails, and which form of attention it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.engine.decode import DecodeStep
from flashnorm_mlx.kernels.attend import TAIL, Heads, default_layout
from flashnorm_mlx.rotating import RotatingKVCache


def test_growing_takes_memory_for_one_layer_more() -> None:
    """Not for all: their old buffers would be there beside the new ones until the step is done."""
    heads = Heads(2, 2, 64, 1.0, 64)
    layers = 16
    step = SimpleNamespace(cached=[SimpleNamespace(heads=heads)] * layers, dtype=mx.float32)
    caches = [KVCache() for _ in range(layers)]
    for cache in caches:
        cache.hold(mx.ones((2, 1, 2, 2048, 64)))
        cache.tail, cache.waiting, cache.offset = mx.ones(heads.tail_size(1)), TAIL, 2048 + TAIL
    mx.eval([(c.buffer, c.tail) for c in caches])
    each, before = caches[0].nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    DecodeStep.make_room(step, 1, 1, caches)  # type: ignore[arg-type]
    mx.eval([c.buffer for c in caches])
    grown = mx.get_active_memory() - before
    assert {c.capacity for c in caches} == {2304} and 0 < grown < layers * each * 0.15
    assert mx.get_peak_memory() - before < grown + 3 * each


def test_the_tail_has_the_size_of_those_to_come() -> None:
    """Where a buffer grows, attention is in more parts: with a tail of the old size the next step would be traced."""
    heads = Heads(8, 2, 64, 1.0, 64)
    step = SimpleNamespace(cached=[SimpleNamespace(heads=heads)], dtype=mx.float32)
    cache = KVCache()
    cache.hold(mx.zeros((2, 1, 2, 1536, 64)))
    cache.tail, cache.waiting, cache.offset = (
        mx.zeros(heads.output_size(1, 1, default_layout(heads, 1536), mx.float32)),
        TAIL,
        1568,
    )
    DecodeStep.make_room(step, 1, 1, [cache])  # type: ignore[arg-type]
    assert cache.capacity == 1792 and cache.waiting == 0
    assert cache.tail.size == heads.output_size(1, 1, default_layout(heads, 1792), mx.float32)
    cache.waiting, tail = 3, cache.tail
    DecodeStep.make_room(step, 1, 1, [cache])  # type: ignore[arg-type]
    assert cache.tail is tail


def test_how_long_a_sequence_becomes() -> None:
    """Both forms of attention are tried before they are needed, for each shape of a step."""

    def is_long(*caches: Any, length: int = 1) -> bool:
        return DecodeStep.is_long(None, list(caches), length)  # type: ignore[arg-type]

    def behind(cache: Any, tokens: int) -> Any:
        cache.offset = tokens
        return cache

    assert not is_long(behind(KVCache(), 1016), length=8) and is_long(behind(KVCache(), 1017), length=8)
    assert not is_long(behind(RotatingKVCache(700), 5000)) and is_long(behind(RotatingKVCache(1500), 1100))
    assert is_long(behind(RotatingKVCache(700), 1100), behind(KVCache(), 1100))
