"""A model's weights, read from their files a piece at a time, so that little more than the model is ever held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from .architectures.base import Decoder, named_arrays
from .errors import FlashNormError

Progress = Callable[[str, int, int], None]


class Reader:
    """Reads, checks and packs the pieces of a model: its blocks, and what stands beside them.

    Args:
        path: the folder, for messages.
        progress: called with a word, the pieces done and the pieces in all.
    """

    def __init__(self, model: Decoder, path: Path, progress: Progress) -> None:
        self.path, self.progress = path, progress
        self.left = list(_pieces(model, model.layers[0]))
        self.count = len(self.left)

    def read(self, part: nn.Module) -> None:
        """Read the pieces that a module is in, is, or consists of, as far as that has not been done.

        Raises:
            FlashNormError: for a file that can't be read, and for a weight that is not finite.
        """
        parts = part.modules()
        for piece in list(self.left):
            name, module = piece
            if any(m is module for m in parts) or any(m is part for m in module.modules()):
                self._read(name, module)
                self.left.remove(piece)
                self.progress("loading", self.count - len(self.left), self.count)

    def _read(self, name: str, part: nn.Module) -> None:
        arrays = [(k, a) for k, a in named_arrays(part) if mx.issubdtype(a.dtype, mx.floating)]
        finite = [mx.all(mx.isfinite(a)) for _, a in arrays]
        try:
            mx.eval(part.parameters(), finite)
        except RuntimeError as error:
            raise FlashNormError(f"{self.path}: {error}") from None
        for (k, _), good in zip(arrays, finite, strict=True):
            if not good.item():
                raise FlashNormError(f"{self.path}: tensor {name}.{k} has values that are not finite (NaN or infinite)")
        for _, module in part.named_modules():
            if hasattr(module, "pack"):
                module.pack()
        mx.eval(part.parameters())


def _pieces(module: nn.Module, block: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.children().items():
        if isinstance(child, list):
            yield from ((f"{path}{name}.{i}", layer) for i, layer in enumerate(child))
        elif any(m is block for m in child.modules()):
            yield from _pieces(child, block, f"{path}{name}.")
        else:
            yield f"{path}{name}", child
