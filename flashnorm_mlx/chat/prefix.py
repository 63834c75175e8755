"""The prompt cache between turns: only what is new in a conversation goes through the model again."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache


class PrefixCache:
    """A model's cache together with the token ids it holds.

    `ids` is kept in step by whoever feeds the model through `cache`; where that can't be known (an exception in
    the middle of a forward pass), `drop` forgets both.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.drop()

    def drop(self) -> None:
        """Start with an empty cache."""
        self.ids: list[int] = []
        self.cache: list[Any] = make_prompt_cache(self._model)

    def reuse(self, ids: list[int]) -> int:
        """Cut the cache back to what it has in common with `ids`, and return how many ids that is.

        At least one id is left to feed, for its logits. A cache that can't be cut (a window that has wrapped, a
        recurrent state) is only of use whole; otherwise it starts empty.
        """
        pairs = zip(self.ids, ids[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        surplus = len(self.ids) - common
        if surplus and trim_prompt_cache(self.cache, surplus) != surplus:
            self.drop()
        else:
            self.ids = ids[:common]
        return len(self.ids)
