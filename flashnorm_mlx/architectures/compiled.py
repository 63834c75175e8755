"""Blocks compiled up to their attention and from it on, once for all that differ in nothing but their arrays.

On a GPU the host takes longest where few tokens are new: each operation is handed over in some microseconds, and
building the graph in Python takes as much again. A compiled function builds it at once, and what it is compiled from
is one block, not all. Attention stays outside, for the cache's length is another in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers.rope import Positions

#: What is compiled for so many shapes of passes is kept.
SHAPES = 64

#: So many blocks that are alike pay for being compiled at the first pass of a shape; fewer, at the second.
MANY = 12


class CompiledBlocks:
    """A model's blocks, each called as itself.

    Args:
        blocks: have ``before(h, positions)``, ``attend(qkv, mask, cache)``, ``behind(h, a, *more)`` and ``kind``.
        positions: what a pass's :class:`Positions` are made by.
    """

    def __init__(self, blocks: Sequence[Any], positions: Callable[..., Positions]) -> None:
        self.slots: list[tuple[nn.Module, str, Any]] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.forms: dict[Any, Form] = {}
        self.blocks = []
        for block in blocks:
            arrays: list[mx.array] = []
            template, key = _emptied(block, arrays, self.slots)
            form = self.forms[key] = self.forms.get(key) or Form(template, positions)
            form.blocks += 1
            self.blocks.append(CompiledBlock(block, arrays, form))
        mx.eval([block.arrays for block in self.blocks])  # what is still to be read from a file would be in every pass

    def of(self, shape: tuple[int, ...]) -> list[CompiledBlock]:
        """The blocks, for a residual of this shape."""
        is_known = shape in self.shapes
        is_full = not is_known and len(self.shapes) == SHAPES
        for form in self.forms.values():
            form.pays = is_known or form.blocks >= MANY
            if is_full:
                form.forget()
        if is_full:
            self.shapes.clear()
        self.shapes.add(shape)
        return self.blocks

    def is_stale(self) -> bool:
        """Whether a layer was exchanged, or its weights (adapters do that)."""
        return any(owner.get(name) is not value for owner, name, value in self.slots)


class CompiledBlock:
    """One of them: ``h, qkv = before(h)``, ``a = attend(qkv)``, ``behind(h, a)``."""

    def __init__(self, block: Any, arrays: list[mx.array], form: Form) -> None:
        self.block, self.arrays, self.form, self.kind = block, arrays, form, block.kind

    def __call__(self, h: Any, positions: Positions, mask: Any, cache: Any, *more: mx.array) -> Any:
        block, form, arrays = self.block, self.form, self.arrays
        h, qkv = form.before(arrays, h, positions.arrays) if form.pays else block.before(h, positions)
        a = block.attend(qkv, mask, cache)
        return form.behind(arrays, h, a, *more) if form.pays else block.behind(h, a, *more)


class Form:
    """What is compiled for all blocks that are alike, of one of them without its arrays."""

    before: Callable[..., tuple[Any, tuple[mx.array, ...]]]
    behind: Callable[..., Any]

    def __init__(self, template: Any, positions: Callable[..., Positions]) -> None:
        self.template, self.positions = template, positions
        #: How many.
        self.blocks = 0
        #: Whether compiling costs less than it saves in this pass.
        self.pays = False
        self.forget()

    def forget(self) -> None:
        """Drop what was compiled; it holds a graph for each shape that it has seen."""
        self.before = mx.compile(partial(_before, self.template, self.positions))
        self.behind = mx.compile(partial(_behind, self.template))


def _before(template: Any, positions: Callable[..., Positions], arrays: list[mx.array], h: Any, at: Any) -> Any:
    start, table, *_ = at
    made = positions(template.kind[1], start, table.shape[-2])
    return _filled(template, iter(arrays)).before(h, made.with_arrays(at))


def _behind(template: Any, arrays: list[mx.array], h: Any, a: mx.array, *more: mx.array) -> Any:
    return _filled(template, iter(arrays)).behind(h, a, *more)


@dataclass(frozen=True)
class Hole:
    """Where an array was."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


#: What a module has besides its own attributes.
_OF_MLX = ("_no_grad", "_training")


def _emptied(value: Any, arrays: list[mx.array], slots: list[tuple[nn.Module, str, Any]]) -> tuple[Any, Any]:
    """A copy with holes for the arrays, and a key that is the same for all values that differ in their arrays alone."""
    if isinstance(value, mx.array):
        arrays.append(value)
        hole = Hole(tuple(value.shape), value.dtype)
        return hole, hole
    if isinstance(value, nn.Module):
        slots += [(value, k, v) for k, v in value.items()]
        made, key = _copy(value), [type(value)]
        for own, items in ((made, value.items()), (vars(made), _attributes(value))):
            for name, item in items:
                own[name], part = _emptied(item, arrays, slots)
                key.append((name, part))  # type: ignore[arg-type]
        return made, tuple(key)
    if type(value) in (list, tuple):
        parts = [_emptied(item, arrays, slots) for item in value]
        return type(value)(part for part, _ in parts), tuple(key for _, key in parts)
    return value, value if value.__hash__ is not None else id(value)


def _filled(value: Any, arrays: Iterator[mx.array]) -> Any:
    """A copy with arrays in the holes, in the same order."""
    if isinstance(value, Hole):
        return next(arrays)
    if isinstance(value, nn.Module):
        made = _copy(value)
        for own, items in ((made, value.items()), (vars(made), _attributes(value))):
            for name, item in items:
                own[name] = _filled(item, arrays)
        return made
    if type(value) in (list, tuple):
        return type(value)(_filled(item, arrays) for item in value)
    return value


def _copy(module: nn.Module) -> Any:
    """A module of the same children and attributes; copy.copy takes three times as long."""
    made = type(module).__new__(type(module))
    dict.update(made, module)  # Module.update sets parameters
    vars(made).update(vars(module))
    return made


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in _OF_MLX]
