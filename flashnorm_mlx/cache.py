"""The key-value cache of fused decoding: mlx-lm's, with the newest tokens in a small tail.

A kernel can't write into an array that it is given, and copying the cache for each token would cost more than the
whole layer. So keys and values lie in one buffer, the attention kernel passes the newest ones through in a tail of
:data:`~flashnorm_mlx.kernels.attend.TAIL` tokens, and a full tail is appended to the buffer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as stock

from .kernels.attend import TAIL


class Buffered:
    """``buffer [2, batch, kv_heads, capacity, head_dim]`` and, behind it, ``waiting`` tokens in ``tail``.

    ``tail`` starts with ``[2, batch, kv_heads, TAIL, head_dim]``. The class beside this one among a cache's bases is
    mlx-lm's; the methods at the end are each cache's own.
    """

    buffer: mx.array | None = None
    #: The buffer's batch, capacity and dtype, which must agree between the layers of a model for a fused step.
    room: tuple[int, int, str] | None = None
    tail: mx.array | None = None
    waiting = 0
    #: Of the kernels' last step on it; None: something else has been done to it since.
    mark: object = None

    @property
    def padding(self) -> tuple[int, ...]:
        """Tokens in front of each sequence that are none; empty: there are no such."""
        return ()

    @property
    def capacity(self) -> int:
        return 0 if self.room is None else self.room[1]

    def capacity_for(self, length: int) -> int:
        """What it is, or becomes for so many more tokens."""
        return max(self.capacity, size_for(self.end + length))

    def fits(self, batch: int, dtype: mx.Dtype) -> bool:
        """Whether what is in it is of so many sequences and of this dtype."""
        return self.room in (None, (batch, self.capacity, str(dtype)))

    def hold(self, buffer: mx.array | None) -> None:
        """Take over a buffer."""
        self.buffer, self.room, self.mark = buffer, None if buffer is None else room_of(buffer), None

    def make_room(self, length: int, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        """See to it that there is a buffer, for ``shape`` (batch, kv_heads, head_dim), and room in the tail."""
        if self.buffer is None:
            self._borrow(shape, dtype)
        if self.waiting + length > TAIL:
            self.settle()

    def wait(self, tail: mx.array, length: int, mark: object = None) -> None:
        """Take over a tail that has ``length`` more tokens in it, from a step of this ``mark``."""
        self.tail, self.mark = tail, mark
        self.waiting += length
        self._advance(length)

    def settle(self) -> None:
        """Append what waits in the tail to the buffer."""
        self.mark = None
        if self.waiting:
            assert self.buffer is not None and self.tail is not None
            _, batch, heads, _, dim = self.buffer.shape
            newest = self.tail[: 2 * batch * heads * TAIL * dim].reshape(2, batch, heads, TAIL, dim)
            self._append(newest[..., : self.waiting, :])

    @property
    def end(self) -> int:
        """How many tokens it has taken in, padding among them."""
        raise NotImplementedError

    def _advance(self, tokens: int) -> None:
        """Count tokens that wait in the tail."""
        raise NotImplementedError

    def _borrow(self, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        """Make a buffer with what the cache holds in it."""
        raise NotImplementedError

    def _append(self, newest: mx.array) -> None:
        """Put all that waits, ``[2, batch, kv_heads, waiting, head_dim]``, behind what the buffer holds.

        If this is interrupted, nothing is lost or there twice.
        """
        raise NotImplementedError


class KVCache(Buffered, stock.KVCache):
    """Everything is in the buffer, for whoever reads ``keys``, ``values`` or ``state``.

    So mlx-lm saves, copies, trims, merges and quantises this cache as its own; it bears the same name because
    prompt-cache files hold the class's name.
    """

    def __init__(self) -> None:
        self.offset = 0

    @classmethod
    def adopt(cls, cache: stock.KVCache) -> None:
        """Make a stock cache one of this class, in place, for others may hold it, too; its content stays."""
        keys, values, offset = cache.keys, cache.values, cache.offset
        cache.__dict__.clear()
        cache.__class__ = cls
        cls.__init__(cache)
        if keys is not None:
            cache.state = keys, values, offset

    @property
    def appended(self) -> int:
        """Tokens in the buffer."""
        return self.offset - self.waiting

    def _borrow(self, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        self.hold(room((2, *shape[:2], self.step, shape[2]), dtype))

    def _advance(self, tokens: int) -> None:
        self.offset += tokens

    def _append(self, newest: mx.array) -> None:
        buffer = self._reserve(self.offset)
        buffer[..., self.appended : self.offset, :] = newest
        self.waiting = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.settle()
        start, end = self.offset, self.offset + keys.shape[2]
        if self.buffer is None:
            self.hold(room((2, *keys.shape[:2], size_for(end), keys.shape[3]), keys.dtype))
        buffer = self._reserve(end)
        buffer[0, ..., start:end, :] = keys
        buffer[1, ..., start:end, :] = values
        self.offset = end
        return buffer[0, ..., :end, :], buffer[1, ..., :end, :]

    def _reserve(self, tokens: int) -> mx.array:
        """The buffer, with room for so many tokens."""
        assert self.buffer is not None
        if tokens > self.capacity:
            self.hold(grown(self.buffer, tokens))
        return self.buffer

    def _half(self, i: int) -> mx.array | None:
        """Keys or values, as a view: ``buffer[i]`` alone would be a copy."""
        self.settle()
        return None if self.buffer is None else self.buffer[i, ...]

    @property
    def keys(self) -> mx.array | None:
        return self._half(0)

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self.hold(mx.stack([keys, self.values]))  # type: ignore[list-item]

    @property
    def values(self) -> mx.array | None:
        return self._half(1)

    @values.setter
    def values(self, values: mx.array) -> None:
        self.hold(mx.stack([self.keys, values]))  # type: ignore[list-item]

    @property
    def state(self) -> Any:
        """As mlx-lm's own: keys, values and, from its version 0.32 on, the offset."""
        if _STATE_HAS_OFFSET:
            return self.keys, self.values, self.offset
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        return keys[..., : self.offset, :], values[..., : self.offset, :]

    @state.setter
    def state(self, state: Any) -> None:
        keys, values, *offset = state
        self.tail, self.waiting = None, 0
        self.hold(None if keys is None else mx.stack([keys, values]))
        self.offset = offset[0] if offset else keys.shape[2]

    @property
    def end(self) -> int:
        return self.offset

    def trim(self, n: int) -> int:
        self.mark = None
        n = min(self.offset, n)
        self.offset -= n
        self.waiting = max(0, self.waiting - n)
        return n

    def empty(self) -> bool:
        return self.buffer is None

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.buffer, self.tail) if a is not None)


def room_of(buffer: mx.array) -> tuple[int, int, str]:
    """A buffer's batch, capacity and dtype."""
    return buffer.shape[1], buffer.shape[3], str(buffer.dtype)


def size_for(tokens: int) -> int:
    """A capacity for so many: eight sizes between a power of 2 and the next, for each is a new graph to compile."""
    step = max(KVCache.step, 2 ** ((tokens - 1).bit_length() - 4))
    return max(1, -(-tokens // step)) * step


def grown(buffer: mx.array, tokens: int, most: int | None = None) -> mx.array:
    """A buffer ``[..., capacity, head_dim]`` with room for so many tokens; ``most``: as large as it gets."""
    capacity, dims = buffer.shape[-2:]
    if tokens <= capacity:
        return buffer
    size = size_for(tokens) if most is None else min(most, size_for(tokens))
    more = room((*buffer.shape[:-2], size - capacity, dims), buffer.dtype)
    return mx.concatenate([buffer, more], axis=-2)


def room(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Zeros of a shape. They are made of a row of them, for mx.zeros reads a scalar in the host's memory on CUDA."""
    return mx.contiguous(mx.broadcast_to(_row(shape[-1], dtype), shape))


@cache
def _row(dims: int, dtype: mx.Dtype) -> mx.array:
    row = mx.zeros((dims,), dtype)
    mx.eval(row)
    return row


KVCache.__qualname__ = stock.KVCache.__qualname__

_STATE_HAS_OFFSET = hasattr(stock.KVCache, "keys_and_values")
