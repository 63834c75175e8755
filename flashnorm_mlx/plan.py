"""Which norm goes where in a checkpoint: names only, no arrays.

An architecture declares its norms once (``FOLDS``); the loader, the converter and ``flashnorm info`` read the same
declarations, and so none of them names an architecture.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

#: The key in config.json that says a checkpoint's gains are already folded: ours, and two that were published.
MARKS = ("flashnorm", "flashnorm_folded", "flash_norm")

#: Reasons for which a norm with consumers keeps its gain.
TIED = "the head is tied to the embeddings"
MARKED = "folded already"


@dataclass(frozen=True)
class Fold:
    """One kind of norm of an architecture, and every projection that consumes its output.

    Names are a checkpoint's, with ``{i}`` for the layer's number and without ``.weight``. Every consumer must be
    listed: the gain of a norm whose consumer is missed is lost. A norm without consumers keeps its gain, and
    ``instead`` says what becomes of it.
    """

    norm: str
    into: tuple[str, ...] = ()
    #: The gain is ``1 + w`` (Gemma 1 to 3) rather than ``w``. Declared, never guessed from the weights.
    plus_one: bool = False
    #: What becomes of the scale 1/RMS, in words.
    scale: str = ""
    #: Why the gain is not folded, in words; only for a norm without consumers.
    instead: str = ""


@dataclass(frozen=True)
class Step:
    """What is done with one norm of one checkpoint. ``kept`` is empty where the gain is folded, else the reason."""

    fold: Fold
    norm: str
    into: tuple[str, ...]
    kept: str = ""


@dataclass(frozen=True)
class Plan:
    """What is done with every norm of a checkpoint; ``gain_of`` maps each consumer to its norm, if that is folded."""

    steps: tuple[Step, ...]
    gain_of: dict[str, Step] = field(default_factory=dict)


def is_marked(config: dict) -> bool:
    """Whether config.json says that the gains are folded already."""
    return any(config.get(mark) not in (None, False, 0, "", "false", "False", {}) for mark in MARKS)


def make_plan(folds: tuple[Fold, ...], num_layers: int, names: Container[str], *, marked: bool = False) -> Plan:
    """Lay the declared folds over a checkpoint that holds the tensors ``names``.

    A gain is kept where folding would not be exact or would cost memory: a consumer is quantised, or absent (a tied
    head), or the gains are folded already (``marked``).
    """
    steps = []
    for fold, norm, into in _instances(folds, num_layers):
        kept = ""
        if not into:
            kept = fold.instead
        elif not all(any(f"{c}{suffix}" in names for suffix in (".weight", ".qweight")) for c in into):
            kept = TIED
        elif marked:
            kept = MARKED
        elif any(f"{c}{suffix}" in names for c in into for suffix in (".scales", ".qweight")):
            kept = "the projections are already quantised"
        steps.append(Step(fold, norm, into, kept))
    gain_of = {consumer: step for step in steps if not step.kept for consumer in step.into}
    return Plan(tuple(steps), gain_of)


def _instances(folds: tuple[Fold, ...], num_layers: int) -> Iterator[tuple[Fold, str, tuple[str, ...]]]:
    for fold in folds:
        layers = range(num_layers) if "{i}" in fold.norm else range(1)
        for i in layers:
            yield fold, fold.norm.format(i=i), tuple(c.format(i=i) for c in fold.into)
