"""How much of a prompt is under way on the device while the host goes on to further blocks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx

#: Blocks that are handed over together.
BLOCKS = 2

#: Of how many residuals the bytes may be in use by what is under way.
RESIDUALS = 64


class UnderWay:
    """A prompt's blocks are handed over as they are built; the host waits where they take too much memory.

    All at once would take the memory of all, for an operation's is taken when it is handed over. What is in use is the
    whole process's: beside other work the host waits more often.

    Only what a further block reads is handed over. The last block's output is the logits' alone, and of most of a
    prompt nobody asks for these: generation waits for the caches.
    """

    def __init__(self, h: mx.array, caches: list) -> None:
        self.before: Any = h
        self.blocks = 0
        self.caches, self.cached = caches, _bytes(caches)
        self.most = mx.get_active_memory() + RESIDUALS * h.nbytes

    def add(self, h: Any) -> None:
        """``h``: a residual that another block is about to read."""
        self.blocks += 1
        if self.blocks % BLOCKS:
            return
        with suppress(ValueError):  # within mx.compile, mx.grad or mx.vmap nothing can be computed yet
            mx.async_eval(h)
            excess = mx.get_active_memory() - self.most
            if excess > 0 and excess > _bytes(self.caches) - self.cached:  # what the caches took is theirs for good
                mx.eval(self.before)  # all but the last blocks
        self.before = h


def _bytes(caches: list) -> int:
    """What caches hold; 0 where one doesn't say."""
    try:
        return sum(0 if c is None or c.empty() else c.nbytes for c in caches)
    except (AttributeError, NotImplementedError):
        return 0
