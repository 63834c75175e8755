"""Blocks compiled up to their attention and from it on, once for all that differ in nothing but their arrays.

On a GPU the host takes longest where few tokens are new: each operation is handed over in some microseconds, and
building the graph in Python takes as much again. A compiled function builds it at once, and what it is compiled from
is one block, not all. Attention stays outside, for the cache's length is another in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers.rope import Positions

#: Of so many shapes of passes what is compiled is kept; with the next one all of it is dropped.
SHAPES = 64

#: So many blocks that are alike pay for being compiled at the first pass of a shape; fewer, at the second.
MANY = 12

_serials = count()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``mx.compile(function)``, for a function that does not live as long as the process.

    MLX knows a function by its address, and forgets it in one thread only: what another thread compiled would be taken
    for the next function at that address. So each has a number, which is compared as all constants are.
    """
    return partial(mx.compile(lambda serial, *args: function(*args)), next(_serials))


class CompiledBlocks:
    """A model's blocks, each called as itself.

    Args:
        blocks: the model's layers, or what stands in for them in a prompt; those that have ``before(h, positions)``,
            ``attend(qkv, mask, cache)`` and ``behind(h, a, *more)`` are compiled.
        positions: what a pass's :class:`Positions` are made by.
    """

    def __init__(self, blocks: Sequence[Any], positions: Callable[..., Positions]) -> None:
        self.plain = list(blocks)
        self.shapes: set[tuple[int, ...]] = set()
        self.forms: dict[Any, Form] = {}
        self.compiled: list[CompiledBlock | None] = [self._compiled(block, positions) for block in blocks]

    def _compiled(self, block: Any, positions: Callable[..., Positions]) -> CompiledBlock | None:
        if not hasattr(block, "before"):
            return None
        arrays: list[mx.array] = []
        template, key = _emptied(block, arrays)
        form = self.forms[key] = self.forms.get(key) or Form(template, positions)
        form.count += 1
        return CompiledBlock(block, arrays, form)

    def of(self, shape: tuple[int, ...]) -> list[Any]:
        """The blocks for a residual of this shape: compiled where that costs less than it saves."""
        is_known = shape in self.shapes
        if not is_known and len(self.shapes) == SHAPES:
            self.shapes.clear()
            for form in self.forms.values():
                form.forget()
        self.shapes.add(shape)
        both = zip(self.compiled, self.plain, strict=True)
        return [block if block and (is_known or block.form.count >= MANY) else plain for block, plain in both]


class CompiledBlock:
    """One of them: ``h, qkv = before(h)``, ``a = attend(qkv)``, ``behind(h, a)``."""

    def __init__(self, block: Any, arrays: list[mx.array], form: Form) -> None:
        self.attend, self.kind, self.arrays, self.form = block.attend, block.kind, arrays, form

    def __call__(self, h: Any, positions: Positions, mask: Any, cache: Any, *more: mx.array) -> Any:
        h, qkv = self.form.before(self.arrays, h, positions.arrays)
        return self.form.behind(self.arrays, h, self.attend(qkv, mask, cache), *more)


class Form:
    """What is compiled for all blocks that are alike, of one of them without its arrays."""

    before: Callable[..., tuple[Any, tuple[mx.array, ...]]]
    behind: Callable[..., Any]

    def __init__(self, template: Any, positions: Callable[..., Positions]) -> None:
        self.template, self.positions = template, positions
        #: How many blocks.
        self.count = 0
        self.forget()

    def forget(self) -> None:
        """Drop what was compiled; it holds a graph for each shape that it has seen."""
        self.before = compiled(partial(_before, self.template, self.positions))
        self.behind = compiled(partial(_behind, self.template))


def _before(template: Any, positions: Callable[..., Positions], arrays: list[mx.array], h: Any, at: Any) -> Any:
    _, table, *_ = at
    made = positions(template.kind[1], 0, table.shape[-2]).with_arrays(at)
    return _filled(template, iter(arrays)).before(h, made)


def _behind(template: Any, arrays: list[mx.array], h: Any, a: mx.array, *more: mx.array) -> Any:
    return _filled(template, iter(arrays)).behind(h, a, *more)


@dataclass(frozen=True)
class Hole:
    """Where an array was."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


def _emptied(value: Any, arrays: list[mx.array]) -> tuple[Any, Any]:
    """A copy with holes for the arrays, and a key that is the same for all values that differ in their arrays alone."""
    if isinstance(value, mx.array):
        arrays.append(value)
        hole = Hole(tuple(value.shape), value.dtype)
        return hole, hole
    keys: list[Any] = []

    def emptied(item: Any) -> Any:
        made, key = _emptied(item, arrays)
        keys.append(key)
        return made

    if isinstance(value, nn.Module):
        made = _mapped(value, emptied)
        return made, (type(value), *value, *_attributes(value), *keys)
    if isinstance(value, list | tuple | dict):
        made = _mapped(value, emptied)
        return made, (type(value), *(value if isinstance(value, dict) else ()), *keys)
    try:
        hash(value)
    except TypeError:
        return value, id(value)
    return value, (type(value), value)


def _filled(value: Any, arrays: Iterator[mx.array]) -> Any:
    """A copy with arrays in the holes, in the same order."""
    if isinstance(value, Hole):
        return next(arrays)
    return _mapped(value, lambda item: _filled(item, arrays))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A module, list, tuple or dict of the same kind with each item changed; anything else as it is."""
    if isinstance(value, nn.Module):
        made = type(value).__new__(type(value))  # copy.copy takes longer
        dict.update(made, {name: change(item) for name, item in value.items()})  # Module.update sets parameters
        vars(made).update(vars(value))
        vars(made).update({name: change(item) for name, item in _attributes(value).items()})
        return made
    if isinstance(value, dict):
        return {name: change(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [change(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, without those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in ("_no_grad", "_training")}
