"""The cache of a layer that sees a window."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models import cache as stock

from .cache import grown, room, size_for
from .lent import Lent


class Windowed(Lent):
    """The buffer grows to the window and some more, so that older tokens are moved out once in so many steps."""

    max_size: int
    #: Tokens in the buffer beyond the window, at least a tail.
    SLACK = 256

    @property
    def most(self) -> int:
        """The capacity that it grows to."""
        return -(-(self.max_size + self.SLACK) // 32) * 32

    @property
    def held(self) -> int:
        """Tokens that a window reaches: where mlx-lm's own would go on, which others read without asking for keys."""
        return min(self.appended + self.waiting, self.max_size)

    def capacity_for(self, length: int) -> int:
        return min(self.most, super().capacity_for(length))

    def _lend(self, held: list[mx.array], shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        """Make a buffer with the keys and values that are ``held`` in it, if any are, as far as a window reaches."""
        newest = [a[..., -self.max_size :, :] for a in held]
        count = newest[0].shape[2] if newest else 0
        buffer = room((2, *shape[:2], min(self.most, size_for(count)), shape[2]), dtype)
        if newest:
            buffer[..., :count, :] = mx.stack(newest)
        self.appended = count
        self.hold(buffer)
        self._keys = self._values = None

    def _appended(self, buffer: mx.array, newest: mx.array) -> tuple[mx.array, int]:
        """There is more room or, in the end, what no window reaches any more makes room for it."""
        start, count = self.appended, newest.shape[3]
        if start + count <= self.most:
            buffer = grown(buffer, start + count, self.most)
        else:
            kept = buffer[..., start - self.max_size : start, :]
            start = self.max_size
            buffer = mx.concatenate([kept, mx.zeros_like(buffer[..., start:, :])], axis=3)
        buffer[..., start : start + count, :] = newest
        return buffer, start + count

    def _in_reach(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        """The keys and values that a window reaches."""
        start, end = max(0, self.appended - self.max_size), self.appended
        return (buffer[0, ..., start:end, :], buffer[1, ..., start:end, :]) if end else (None, None)

    def make_mask(self, *arguments, **options):  # type: ignore[no-untyped-def]
        self.release()
        return super().make_mask(*arguments, **options)  # type: ignore[misc]


class RotatingKVCache(Windowed, stock.RotatingKVCache):
    """It bears mlx-lm's name because prompt-cache files hold the class's name."""

    @property
    def end(self) -> int:
        end: int = self.offset
        return end

    def _advance(self, tokens: int) -> None:
        self.offset += tokens

    def _borrow(self, shape: tuple[int, int, int], dtype: mx.Dtype) -> None:
        held = [self._temporal_order(a) for a in (self._keys, self._values) if a is not None]
        self._lend(held, shape, dtype)

    def _given_back(self, buffer: mx.array) -> tuple[mx.array | None, mx.array | None]:
        self._idx = self.held
        return self._in_reach(buffer)


RotatingKVCache.__qualname__ = stock.RotatingKVCache.__qualname__
