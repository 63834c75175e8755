"""What is made of a model's layers ahead of its passes, and dropped when these are exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import first_line
from ..kernels.packed import Failed
from ..kernels.project import MAX_ROWS
from ..layers.rope import Positions
from .compiled import CompiledBlocks
from .decode import DecodeStep
from .snapshot import Snapshot


class MadeAhead(nn.Module):
    """A model that decodes by fused kernels, once :meth:`fuse` was called, and else by compiled blocks on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._step: DecodeStep | None = None
        self._compiled: CompiledBlocks | None = None
        self._snapshot: Snapshot | None = None

    @property
    def layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def embed(self, ids: mx.array) -> mx.array:
        raise NotImplementedError

    def trial_pass(self, ids: mx.array) -> mx.array:
        raise NotImplementedError

    @property
    def positions(self) -> Callable[..., Positions]:
        """Makes what blocks are told of the positions, of a rotation, an offset and a length."""
        return Positions

    def fuse(self, *, measure: bool = False, read: Callable[[nn.Module], None] | None = None) -> None:
        """From now on decode by fused kernels. Weights move into the buffers that they read.

        Args:
            measure: use plain operations where they prove faster than a kernel.
            read: called with each part of the model before its weights move, where they may be in a file still.

        Raises:
            Uncovered: if there is no kernel for one of the layers.
            Failed: if there is one, and it fails on this device.
        """
        self._compiled = None
        self._step = DecodeStep(self, self.embed(mx.array([[0]])).dtype, measure=measure, read=read)
        self._snapshot = Snapshot(self)

    def try_prompt(self) -> None:
        """Have what stands between a prompt's matrix products compiled now, by a prompt longer than a step.

        Raises:
            Failed: if it fails on this device; the kernels are left out then.
        """
        length = MAX_ROWS + 1
        try:
            mx.eval(self.trial_pass(mx.zeros((1, length), mx.int32)))
        except (RuntimeError, ValueError) as error:  # a compiler's or a driver's, of any kind
            self._step = self._compiled = self._snapshot = None
            raise Failed(f"a prompt of {length} tokens on this device: {first_line(error)}") from None

    @property
    def kernels(self) -> str:
        """``fused`` or ``reference``: how this model decodes."""
        return "reference" if self._step is None else "fused"

    def stepped(self, ids: mx.array, cache: list | None) -> mx.array | None:
        """The logits, by the decode step's kernels; None for what they are not for."""
        if self._step is None or not cache or not self._step.takes(ids, cache):
            return None
        return self._step(ids, cache)

    def blocks(self, shape: tuple[int, ...]) -> Sequence[Any]:
        """The layers as a pass with a cache has them, over a residual of this shape: on a GPU, compiled."""
        if self._step is None and mx.default_device() != mx.gpu:
            return self.layers
        if self._compiled is None:
            blocks = self.layers if self._step is None else self._step.prompt_blocks
            self._compiled = CompiledBlocks(blocks, self.positions)
            self._snapshot = self._snapshot or Snapshot(self)
        return self._compiled.of(shape)

    def renew(self) -> None:
        """Drop what was made of layers, or weights, that were exchanged since (adapters do that)."""
        if self._snapshot is not None and self._snapshot.is_stale(self):
            self._step = self._compiled = self._snapshot = None

    def update(self, parameters: dict, strict: bool = True) -> nn.Module:  # type: ignore[override]
        """As nn.Module's, by which weights are loaded, cast and trained."""
        super().update(parameters, strict)
        self.renew()
        return self

    def update_modules(self, modules: dict, strict: bool = True) -> nn.Module:
        """As nn.Module's, by which layers are exchanged."""
        super().update_modules(modules, strict)
        self.renew()
        return self

    def train(self, mode: bool = True) -> nn.Module:
        """As nn.Module's; how a dropout behaves is compiled in."""
        self.renew()
        super().train(mode)
        self._compiled = None
        self._snapshot = self._snapshot and Snapshot(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which decode in plain operations."""
        return vars(self) | {"_step": None, "_compiled": None, "_snapshot": None}
