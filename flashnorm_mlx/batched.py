"""The cache of several sequences of different lengths, as mlx-lm's server has them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as stock

from .cache import grown, room, size_for
from .lent import Lent
from .rotating import Windowed


class BatchKVCache(Lent, stock.BatchKVCache):
    """The sequences end together; what is in front of the shorter ones is padding, which no query sees."""

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
        self._padding = self.padding
        buffer = room((2, *shape[:2], size_for(self._idx), shape[2]), dtype)
        if self._keys is not None:
            buffer[0, ..., : self._idx, :] = self._keys[..., : self._idx, :]
            buffer[1, ..., : self._idx, :] = self._values[..., : self._idx, :]  # type: ignore[index]
        self.appended = self._idx
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


class BatchRotatingKVCache(Windowed, stock.BatchRotatingKVCache):
    """The same for a layer that sees a window. Sequences longer than that keep no more, but know their length."""

    @property
    def offset(self) -> mx.array:
        """Each sequence's length ``[batch]``."""
        return self._lengths_then + self._since if self._since else self._lengths_then

    @offset.setter
    def offset(self, offset: mx.array) -> None:
        self.release()
        self._lengths_then, self._since = offset, 0

    @property
    def left_padding(self) -> mx.array:
        """Where each sequence starts in what is held ``[batch]``; below 0 where its start has been moved out."""
        if self.buffer is None:
            return self._left_padding
        return self.held - self.offset

    @left_padding.setter
    def left_padding(self, padding: mx.array) -> None:
        self.release()
        self._left_padding = padding

    @property
    def padding(self) -> tuple[int, ...]:
        """By how many tokens each sequence is shorter than the longest."""
        if self.buffer is not None:
            return self._padding
        lengths = _on_the_host(self.offset)
        return tuple(max(lengths) - length for length in lengths)

    @property
    def end(self) -> int:
        """The length of the longest."""
        return self._end if self.buffer is not None else max(_on_the_host(self.offset))

    def fits(self, batch: int, dtype: mx.Dtype) -> bool:
        if self._lengths is not None or not super().fits(batch, dtype):  # half-way in a prompt
            return False
        if self._keys is None:
            return True
        held = self._keys.shape[2] if self.rotated else self._idx
        padding, lengths = _on_the_host(self.left_padding), _on_the_host(self.offset)
        return all(max(0, p) == max(0, held - length) for p, length in zip(padding, lengths, strict=True))

    def _advance(self, tokens: int) -> None:
        self._end += tokens
        self._offset += tokens
        self._since += tokens
        self._idx = self.held

    def _borrow(self, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        self._padding, self._end = self.padding, self.end
        if self._keys is not None:
            self._temporal_order()
        held = [a[..., : self._idx, :] for a in (self._keys, self._values) if a is not None]
        self._lend(held, shape, dtype)

    def _given_back(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        self._lengths_then, self._since, self.rotated = self.offset, 0, False
        self._idx = self.held
        self._left_padding = self._idx - self._lengths_then
        return self._in_reach(buffer)

    def prepare(self, **options: list[int] | None) -> None:
        self.release()
        super().prepare(**options)

    def extend(self, other: stock.BatchRotatingKVCache) -> None:
        self.release()
        if isinstance(other, Lent):
            other.release()
        super().extend(other)

    def filter(self, batch_indices: list[int]) -> None:
        self.release()
        super().filter(batch_indices)

    def extract(self, idx: int) -> stock.RotatingKVCache:
        self.release()
        return super().extract(idx)


def _on_the_host(numbers: mx.array) -> list[int]:
    return [int(number) for number in np.array(numbers)]


BatchKVCache.__qualname__ = stock.BatchKVCache.__qualname__
BatchRotatingKVCache.__qualname__ = stock.BatchRotatingKVCache.__qualname__
