"""A cache of mlx-lm's that is lent to the kernels while they decode.

Between decode steps of the kernels its tokens lie in a buffer and a tail; whoever asks for keys, values or a mask gets
them back in mlx-lm's own form, so that all that mlx-lm does with its caches goes on.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .cache import Buffered, room_of


class Lent(Buffered):
    """The buffer holds ``appended`` tokens, of those that a layer sees; while there is none, mlx-lm's own form does."""

    _keys: mx.array | None = None
    _values: mx.array | None = None
    appended = 0

    @classmethod
    def adopt(cls, cache: Any) -> None:
        """Make a stock cache one of this class, in place, for others may hold it, too; its content stays."""
        fields = dict(cache.__dict__)
        cache.__dict__.clear()
        cache.__class__ = cls
        cache._keys, cache._values = fields.pop("keys"), fields.pop("values")
        for name, value in fields.items():
            setattr(cache, name, value)

    def fits(self, batch: int, dtype: mx.Dtype) -> bool:
        if self._keys is not None:
            return (self._keys.shape[0], self._keys.dtype) == (batch, dtype)
        return super().fits(batch, dtype)

    def _append(self, newest: mx.array) -> None:
        assert self.buffer is not None
        buffer, appended = self._appended(self.buffer, newest)
        self.buffer, self.room, self.appended, self.waiting = buffer, room_of(buffer), appended, 0

    def release(self) -> None:
        """Give what the kernels hold back to mlx-lm's own form."""
        if self.buffer is not None:
            self.settle()
            self._keys, self._values = self._given_back(self.buffer)
            self.hold(None)
            self.tail, self.appended = None, 0

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

    def _appended(self, buffer: mx.array, newest: mx.array) -> tuple[mx.array, int]:
        """The buffer with ``newest [2, batch, kv_heads, tokens, head_dim]`` behind what it holds, and how many."""
        raise NotImplementedError

    def _given_back(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        """Keys and values as mlx-lm has them, of a buffer behind which nothing waits."""
        raise NotImplementedError
