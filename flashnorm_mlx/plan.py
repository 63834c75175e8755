"""Which norm goes where in a checkpoint: names only, no arrays.

An architecture declares its norms once (``folds``); the loader, the converter and ``flashnorm info`` read the same
declarations, and so none of them names an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace

#: The key in config.json that says a checkpoint's gains are already folded: ours, and two that were published.
MARKS = ("flashnorm", "flashnorm_folded", "flash_norm")

#: Reasons for which a norm with consumers keeps its gain.
TIED = "the head is tied to the embeddings"
MARKED = "folded already"
QUANTISED = "the projections are already quantised"
IN_A_KERNEL = "computed with the norm; where a kernel does the projection, deferred behind the product"
EXPLICIT = "the weights are already quantised; a LayerNorm is folded with every writer of the residual or not at all"
UNWRITABLE = (
    "a LayerNorm folds into biases and a head that stock mlx-lm has no place for, and is centred by weights that "
    "quantising would shift; unquantised, it is folded when it is loaded"
)


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
    #: What the norm stores: a gain; LayerNorm also a bias β, which goes into its consumers' biases (§1.1), or nothing.
    parameters: tuple[str, ...] = ("weight",)
    #: The norm subtracts the mean (LayerNorm), which its residual's writers are freed of instead (§1.2).
    centres: bool = False
    #: The layers that have it; None: all.
    layers: tuple[int, ...] | None = None
    #: Those of ``into`` whose weight is stored ``[..., in, out]``, with the gain along the last axis but one.
    transposed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """What adds to the residual in front of LayerNorms: a projection, or a table that rows are looked up in."""

    name: str
    is_table: bool = False


@dataclass(frozen=True)
class Stored:
    """Where a checkpoint has one of a model's tensors: under which name, and whether as the transposed matrix."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Step:
    """What is done with one norm of one checkpoint. ``kept`` is empty where the gain is folded, else the reason."""

    fold: Fold
    norm: str
    into: tuple[str, ...]
    kept: str = ""
    #: Those of ``into`` whose weight is stored ``[..., in, out]``.
    transposed: tuple[str, ...] = ()

    def axis(self, consumer: str) -> int:
        """The axis of a consumer's weight that the gain goes along."""
        return -2 if consumer in self.transposed else -1


@dataclass(frozen=True)
class Plan:
    """What is done with every norm of a checkpoint.

    ``gain_of`` maps each consumer, under the checkpoint's name for it, to its norm, if that is folded. ``writers`` are
    to be centred; there are none where no norm subtracts a mean, or all stay explicit.
    """

    steps: tuple[Step, ...]
    gain_of: dict[str, Step] = field(default_factory=dict)
    writers: tuple[Writer, ...] = ()

    def kept(self, reason: str) -> Plan:
        """The plan that leaves every norm as it is."""
        return Plan(tuple(replace(step, kept=step.kept or reason) for step in self.steps))


def is_marked(config: dict) -> bool:
    """Whether config.json says that the gains are folded already."""
    return any(config.get(mark) not in (None, False, 0, "", "false", "False", {}) for mark in MARKS)


def make_plan(
    folds: tuple[Fold, ...],
    num_layers: int,
    names: Container[str],
    *,
    marked: bool = False,
    stored_as: Callable[[str], tuple[str, ...]] = lambda name: (name,),
) -> Plan:
    """Lay the declared folds over a checkpoint that holds the tensors ``names``.

    A gain is kept where folding would not be exact or would cost memory: a consumer is quantised, or absent (a tied
    head), or the gains are folded already (``marked``). ``stored_as`` says what the checkpoint calls a consumer, where
    that is not its declared name.
    """
    steps: list[Step] = []
    gain_of: dict[str, Step] = {}
    for fold, i in _instances(folds, num_layers):
        norm = fold.norm.format(i=i)
        into, transposed = (tuple(c.format(i=i) for c in some) for some in (fold.into, fold.transposed))
        held = tuple(dict.fromkeys(name for c in into for name in stored_as(c)))
        kept = ""
        if not into:
            kept = fold.instead
        elif not all(any(f"{c}{suffix}" in names for suffix in (".weight", ".qweight")) for c in held):
            kept = TIED
        elif marked:
            kept = MARKED
        elif any(f"{c}{suffix}" in names for c in held for suffix in (".scales", ".qweight")):
            kept = QUANTISED
        steps.append(Step(fold, norm, into, kept, transposed))
        if not kept:
            gain_of |= dict.fromkeys(held, steps[-1])
    return Plan(tuple(steps), gain_of)


def make_centred_plan(
    folds: tuple[Fold, ...], writers: tuple[Writer, ...], num_layers: int, names: Container[str]
) -> Plan:
    """The same for LayerNorms, whose mean is gone only if *every* writer of the residual is centred: all or nothing.

    Gain and bias fold into whatever consumes them; a tied head is given a table of its own for it, for the one that
    rows are looked up in is centred. Marks of folded checkpoints say nothing here: to fold an identity, or to centre
    again, changes nothing.
    """
    steps = tuple(
        Step(f, f.norm.format(i=i), tuple(c.format(i=i) for c in f.into), "" if f.into else f.instead)
        for f, i in _instances(folds, num_layers)
    )
    every = tuple(
        replace(w, name=w.name.format(i=i)) for w in writers for i in range(num_layers if "{i}" in w.name else 1)
    )
    layers = [consumer for step in steps for consumer in step.into] + [writer.name for writer in every]
    if any(f"{layer}{suffix}" in names for layer in layers for suffix in (".scales", ".qweight")):
        return Plan(tuple(replace(s, fold=replace(s.fold, scale=IN_A_KERNEL), kept=s.kept or EXPLICIT) for s in steps))
    return Plan(steps, {consumer: step for step in steps for consumer in step.into}, every)


def _instances(folds: tuple[Fold, ...], num_layers: int) -> Iterator[tuple[Fold, int]]:
    for fold in folds:
        layers = range(num_layers) if "{i}" in fold.norm else range(1)
        for i in layers if fold.layers is None else fold.layers:
            yield fold, i
