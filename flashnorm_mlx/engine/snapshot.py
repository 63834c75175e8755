"""What a model holds, to see later whether it still does; else what was made of its layers ahead is theirs no more."""

from __future__ import annotations

from itertools import chain
from typing import Any

import mlx.nn as nn


class Snapshot:
    """Of all modules in a model and what they hold: arrays, numbers, other modules."""

    def __init__(self, model: nn.Module) -> None:
        self.root = [*map(id, model.values())]  # the model itself is not held, for it holds this
        self.mappings: list[dict[str, Any]] = []
        self.sequences: list[Any] = []
        for value in model.values():
            self._add(value)
        self.held = self._values()  # so that nothing else comes to lie at their addresses
        self.ids = [*map(id, self.held)]

    def _add(self, value: Any) -> None:
        if isinstance(value, dict):  # a module is one, too
            self.mappings += [value] + [vars(value)] * isinstance(value, nn.Module)
            for item in [*value.values(), *(vars(value).values() if isinstance(value, nn.Module) else ())]:
                self._add(item)
        elif isinstance(value, list | tuple):
            self.sequences.append(value)
            for item in value:
                self._add(item)

    def _values(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self.mappings)), *chain.from_iterable(self.sequences)]

    def is_stale(self, model: nn.Module) -> bool:
        """Whether something was exchanged, added or taken away since (adapters do that)."""
        return [*map(id, model.values())] != self.root or [*map(id, self._values())] != self.ids
