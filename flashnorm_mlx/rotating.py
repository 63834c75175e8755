"""The cache of a layer that sees a window: mlx-lm's, lent to the kernels while they decode.

Between decode steps of the kernels the newest tokens lie in a buffer and a tail, as in :mod:`.cache`; whoever asks for
keys, values or a mask gets them back in mlx-lm's own form. The buffer holds the window and some more, so that older
tokens are moved out once in so many steps.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as stock

from .cache import room
from .kernels.attend import TAIL


class RotatingKVCache(stock.RotatingKVCache):
    """``buffer [2, batch, kv_heads, capacity, head_dim]`` holds ``appended`` tokens, ``tail`` the ``waiting`` newest.

    It bears mlx-lm's name because prompt-cache files hold the class's name.
    """

    #: Tokens in the buffer beyond the window, at least a tail.
    SLACK = 256

    def __init__(self, max_size: int, keep: int = 0) -> None:
        self._release_to(None, None)
        super().__init__(max_size, keep)

    @classmethod
    def adopt(cls, cache: stock.RotatingKVCache) -> None:
        """Make a stock cache one of this class, in place, for others may hold it, too; its content stays."""
        fields = dict(cache.__dict__)
        cache.__dict__.clear()
        cache.__class__ = cls
        cache._release_to(fields.pop("keys"), fields.pop("values"))
        cache.__dict__.update(fields)

    def _release_to(self, keys: mx.array | None, values: mx.array | None) -> None:
        self._keys, self._values = keys, values
        self.buffer: mx.array | None = None
        self.room: tuple[int, int, str] | None = None
        self.tail: mx.array | None = None
        self.appended = self.waiting = 0

    @property
    def capacity(self) -> int:
        return -(-(self.max_size + self.SLACK) // 32) * 32

    def fits(self, batch: int, dtype: mx.Dtype) -> bool:
        """Whether what is in it is of so many sequences and of this dtype."""
        if self._keys is not None:
            return (self._keys.shape[0], self._keys.dtype) == (batch, dtype)
        return self.room in (None, (batch, self.capacity, str(dtype)))

    def hold(self, buffer: mx.array) -> None:
        """Take over a buffer."""
        self.buffer = buffer
        self.room = (buffer.shape[1], buffer.shape[3], str(buffer.dtype))

    def make_room(self, length: int, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        """See to it that there is a buffer, for ``shape`` (batch, kv_heads, head_dim), and room in the tail."""
        if self.buffer is None:
            buffer = room((2, *shape[:2], self.capacity, shape[2]), dtype)
            if self._keys is not None:
                newest = [self._temporal_order(a)[..., -self.max_size :, :] for a in (self._keys, self._values)]
                self.appended = newest[0].shape[2]
                buffer[..., : self.appended, :] = mx.stack(newest)
            self.hold(buffer)
            self._keys = self._values = None
        if self.waiting + length > TAIL:
            self.settle()

    def settle(self) -> None:
        """Append what waits in the tail to the buffer; what no window reaches any more makes room for it."""
        if self.waiting:
            assert self.buffer is not None and self.tail is not None
            _, batch, heads, capacity, dim = self.buffer.shape
            newest = self.tail[: 2 * batch * heads * TAIL * dim].reshape(2, batch, heads, TAIL, dim)
            buffer, start = self.buffer, self.appended
            if start + self.waiting > capacity:
                kept = buffer[..., start - self.max_size : start, :]
                start = self.max_size
                buffer = mx.concatenate([kept, mx.zeros_like(buffer[..., start:, :])], axis=3)
            buffer[..., start : start + self.waiting, :] = newest[..., : self.waiting, :]
            self.buffer = buffer
            self.appended, self.waiting = start + self.waiting, 0

    def wait(self, tail: mx.array, length: int) -> None:
        """Take over a tail that has ``length`` more tokens in it."""
        self.tail = tail
        self.waiting += length
        self.offset += length

    def release(self) -> None:
        """Give what the kernels hold back to mlx-lm's own form."""
        if self.buffer is not None:
            self.settle()
            end = self.appended
            start = max(0, end - self.max_size)
            halves = (self.buffer[0, ..., start:end, :], self.buffer[1, ..., start:end, :])
            keys, values = halves if end else (None, None)
            self._release_to(keys, values)
            self._idx = end - start

    @property
    def keys(self) -> mx.array | None:
        self.release()
        return self._keys

    @keys.setter
    def keys(self, keys: mx.array | None) -> None:
        self.release()
        self._keys = keys

    @property
    def values(self) -> mx.array | None:
        self.release()
        return self._values

    @values.setter
    def values(self, values: mx.array | None) -> None:
        self.release()
        self._values = values

    def make_mask(self, *arguments: Any, **options: Any) -> Any:
        self.release()
        return super().make_mask(*arguments, **options)

    def trim(self, n: int) -> int:
        self.release()
        trimmed: int = super().trim(n)
        return trimmed

    def empty(self) -> bool:
        return self.buffer is None and self._keys is None

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self._keys, self._values, self.buffer, self.tail) if a is not None)


RotatingKVCache.__qualname__ = stock.RotatingKVCache.__qualname__
