"""How many operations a decode step hands to the device: counted in its graph, not guessed from its layers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from .loop import Timer, Trial, next_token

#: Operations that make a view of an array, or do nothing to it.
VIEWS = frozenset(
    (
        *("AsStrided", "Broadcast", "BroadcastAxes", "Copy", "CustomTransforms", "Depends", "ExpandDims", "Flatten"),
        *("NumberOfElements", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View"),
    )
)

_NODE = re.compile(r'\[label ="([^"]*)", shape=rectangle\]')


def operations(*outputs: mx.array) -> list[str]:
    """The operations that evaluating ``outputs`` would run, by MLX's names; those of :data:`VIEWS` are left out.

    What was evaluated before is not run again, and not there. Of a compiled function there are the operations that
    compiling has left, a fused one counting once. Each is about one kernel: MLX takes one for each input of a
    concatenation, one or two for attention, for an update of a slice and for a sum, and one for a reshape that must
    copy, which is left out here.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), *outputs)
        names = _NODE.findall(file.read_text(encoding="utf-8"))
    return [name for name in names if name.split()[0] not in VIEWS]  # "View int32"


def launches(model: Any, trial: Trial, vocabulary: int, timer: Timer) -> int:
    """Of one step of a ``decode`` trial, from a token of every row to the next one, argmax included.

    It is a step for which nothing is set up any more, the seventh (a batch's kernels take over at the fifth), and
    nothing done that is done once in many: a longer cache is made, or our tail of 32 tokens appended to it.
    """
    y, cache = trial.start(model, vocabulary, timer)
    for _ in range(6):
        y = next_token(model, y, cache)
        timer.finish(y)
    following = next_token(model, y, cache)
    counted = len(operations(following))
    timer.finish(following)
    return counted
