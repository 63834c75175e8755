"""The cache of several sequences of different lengths, as mlx-lm's server has them."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models import cache as stock

from .cache import grown, room, size_for
from .lent import Lent


class BatchKVCache(Lent, stock.BatchKVCache):
    """The sequences end together; what is in front of the shorter ones is padding, which no query sees."""

    def __init__(self, left_padding: list[int]) -> None:
        self._release_to(None, None)
        super().__init__(left_padding)

    @property
    def offset(self) -> mx.array:
        """Each sequence's length ``[batch]``. mlx-lm moves it along with the other two, so it needs no place."""
        return self._idx - self.left_padding

    @offset.setter
    def offset(self, offset: mx.array) -> None:
        pass

    @property
    def padding(self) -> tuple[int, ...]:
        """``left_padding``, on the host."""
        return self._padding if self.buffer is not None else tuple(self.left_padding.tolist())

    @property
    def end(self) -> int:
        end: int = self._idx
        return end

    def _advance(self, tokens: int) -> None:
        self._idx += tokens

    def _borrow(self, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        self._padding, self.appended = self.padding, self._idx
        buffer = room((2, *shape[:2], size_for(self._idx), shape[2]), dtype)
        if self._keys is not None:
            buffer[0, ..., : self._idx, :] = self._keys[..., : self._idx, :]
            buffer[1, ..., : self._idx, :] = self._values[..., : self._idx, :]  # type: ignore[index]
        self.hold(buffer)
        self._keys = self._values = None

    def _appended(self, buffer: mx.array, newest: mx.array) -> tuple[mx.array, int]:
        end = self.appended + newest.shape[3]
        buffer = grown(buffer, end)
        buffer[..., self.appended : end, :] = newest
        return buffer, end

    def _given_back(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        end = self.appended
        return (buffer[0, ..., :end, :], buffer[1, ..., :end, :]) if end else (None, None)

    def trim(self, n: int) -> int:
        self.release()
        trimmed: int = super().trim(n)
        return trimmed


BatchKVCache.__qualname__ = stock.BatchKVCache.__qualname__
