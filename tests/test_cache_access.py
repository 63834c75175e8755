"""Who reads or changes a cache between the kernels' steps: what it costs, and what the next step knows of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from test_cache import BATCH, DIM, HEADS, SHAPE, random_tokens

from flashnorm_mlx.batched import BatchKVCache, BatchRotatingKVCache
from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.kernels.attend import TAIL
from flashnorm_mlx.rotating import RotatingKVCache


@pytest.mark.parametrize("part", ["keys", "values"])
def test_reading_it_copies_nothing(part: str, tmp_path: Path) -> None:
    """mlx-lm reads a cache's state behind every part of a prompt; an index alone would be a copy of all of it."""
    rng = np.random.default_rng(0)
    cache = KVCache()
    for a in cache.update_and_fetch(*random_tokens(rng, 5)):
        mx.eval(a)
    mx.eval(cache.buffer)
    mx.export_to_dot(str(tmp_path / "read.dot"), getattr(cache, part))
    operations = {word for word in ("Gather", "Copy", "Contiguous") if word in (tmp_path / "read.dot").read_text()}
    assert not operations


def test_room_is_contiguous_zeros() -> None:
    """A kernel that is given anything else has it copied at every step."""
    cache = KVCache()
    cache.make_room(1, SHAPE, mx.float16)
    assert cache.buffer is not None and not mx.any(cache.buffer).item()
    assert memoryview(cache.buffer).contiguous


def touch(cache: Any, how: str) -> None:
    """Do something to a cache that the kernels' next step has to know of."""
    rng = np.random.default_rng(1)
    if how == "trim":
        cache.trim(1)
    elif how == "update":
        cache.update_and_fetch(*random_tokens(rng, 2))
    elif how == "state":
        cache.state = cache.state
    elif how == "copy":
        cache.__dict__.update(copy.deepcopy(cache).__dict__)
    else:
        getattr(cache, how)


@pytest.mark.parametrize("how", ["trim", "update", "state", "copy", "keys", "values"])
@pytest.mark.parametrize("kind", ["plain", "window", "batch"])
def test_whatever_is_done_to_it_takes_its_mark(kind: str, how: str) -> None:
    """A step trusts a cache that bears the mark of the step before."""
    rng = np.random.default_rng(0)
    makes = {"plain": KVCache, "window": lambda: RotatingKVCache(40), "batch": lambda: BatchKVCache([0] * BATCH)}
    cache: Any = makes[kind]()
    cache.update_and_fetch(*random_tokens(rng, 5))
    cache.make_room(1, SHAPE, mx.float32)
    cache.wait(mx.zeros(2 * BATCH * HEADS * TAIL * DIM), 1, mark := object())
    assert cache.mark is mark
    touch(cache, how)
    assert cache.mark is not mark


MAKES: dict[str, Callable[[], Any]] = {
    "plain": KVCache,
    "window": lambda: RotatingKVCache(4),
    "batch": lambda: BatchKVCache([2, 0]),
    "batch with a window": lambda: BatchRotatingKVCache(4, [2, 0]),
}


@pytest.mark.parametrize("kind", MAKES)
def test_one_of_another_ones_state(kind: str) -> None:
    cache = MAKES[kind]()
    new = random_tokens(np.random.default_rng(0), 3)
    cache.update_and_fetch(*new)
    cache.make_room(1, SHAPE, mx.float32)
    cache.wait(mx.zeros(2 * BATCH * HEADS * TAIL * DIM), 1)
    made = type(cache).from_state(cache.state)
    for mine, other in zip(made.state[:2], cache.state[:2], strict=True):
        assert mx.array_equal(mine, other)
    assert made.waiting == 0 and made.mark is None
    if kind == "plain":  # the others have given their buffer back
        cache.wait(mx.zeros(2 * BATCH * HEADS * TAIL * DIM), 1)
    cache.state = made.state
    assert cache.waiting == 0
