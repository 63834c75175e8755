"""A cache of mlx-lm's that is lent to the kernels while they decode.

Between decode steps of the kernels the newest tokens lie in a buffer and a tail, as in :mod:`.cache`; whoever asks for
keys, values or a mask gets them back in mlx-lm's own form, so that all that mlx-lm does with its caches goes on.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .cache import room_of, size_for
from .kernels.attend import TAIL


class Lent:
    """``buffer [2, batch, kv_heads, capacity, head_dim]`` holds ``appended`` tokens, ``tail`` the ``waiting`` newest.

    The class beside this one among a cache's bases is mlx-lm's; the methods at the end are each cache's own.
    """

    _keys: mx.array | None = None
    _values: mx.array | None = None
    buffer: mx.array | None = None
    room: tuple[int, int, str] | None = None
    tail: mx.array | None = None
    appended = waiting = 0
    #: Of the kernels' last step on it; None: something else has been done to it since.
    mark: object = None

    @classmethod
    def adopt(cls, cache: Any) -> None:
        """Make a stock cache one of this class, in place, for others may hold it, too; its content stays."""
        fields = dict(cache.__dict__)
        cache.__dict__.clear()
        cache.__class__ = cls
        cache._release_to(fields.pop("keys"), fields.pop("values"))
        for name, value in fields.items():
            setattr(cache, name, value)

    def _release_to(self, keys: mx.array | None, values: mx.array | None) -> None:
        self._keys, self._values, self.mark = keys, values, None
        self.buffer: mx.array | None = None
        self.room: tuple[int, int, str] | None = None
        self.tail: mx.array | None = None
        self.appended = self.waiting = 0

    @property
    def capacity(self) -> int:
        return 0 if self.room is None else self.room[1]

    def capacity_for(self, length: int) -> int:
        """What it is, or becomes for so many more tokens."""
        return max(self.capacity, size_for(self.end + length))

    def fits(self, batch: int, dtype: mx.Dtype) -> bool:
        """Whether what is in it is of so many sequences and of this dtype."""
        if self._keys is not None:
            return (self._keys.shape[0], self._keys.dtype) == (batch, dtype)
        return self.room in (None, (batch, self.capacity, str(dtype)))

    def hold(self, buffer: mx.array) -> None:
        """Take over a buffer."""
        self.buffer, self.room, self.mark = buffer, room_of(buffer), None

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
            buffer, appended = self._appended(self.buffer, newest[..., : self.waiting, :])
            room = room_of(buffer)
            # in one go, so that nothing is lost or there twice if this is interrupted
            self.buffer, self.room, self.appended, self.waiting = buffer, room, appended, 0

    def release(self) -> None:
        """Give what the kernels hold back to mlx-lm's own form."""
        if self.buffer is not None:
            self.settle()
            keys, values = self._given_back(self.buffer)
            self._release_to(keys, values)

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

    def trim(self, n: int) -> int:
        self.release()
        trimmed: int = super().trim(n)  # type: ignore[misc]
        return trimmed

    def empty(self) -> bool:
        return self.buffer is None and self._keys is None

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self._keys, self._values, self.buffer, self.tail) if a is not None)

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

    def _appended(self, buffer: mx.array, newest: mx.array) -> tuple[mx.array, int]:
        """The buffer with ``newest [2, batch, kv_heads, tokens, head_dim]`` behind what it holds, and how many."""
        raise NotImplementedError

    def _given_back(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        """Keys and values as mlx-lm has them, of a buffer behind which nothing waits."""
        raise NotImplementedError
