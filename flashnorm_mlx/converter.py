"""Checkpoint → fold → quantise → save: a converted folder that this engine and stock mlx-lm both load."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from . import fold
from .architectures.base import Decoder
from .checkpoint import DTYPES as FILE_DTYPES
from .checkpoint import Checkpoint, Part, new_folder, open_checkpoint, write_shards
from .errors import FlashNormError
from .loader import DTYPES, Progress, check_tensors, configured, resolve
from .paths import check_globless, local
from .plan import UNWRITABLE, Plan
from .selfcheck import SelfCheck, self_check

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)

#: What is carried over beside the weights: tokenizer, templates, generation defaults, held-out text, licences.
CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "*.jinja",
    "generation_config.json",
    "heldout.jsonl",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True)
class Options:
    """How to write a conversion; see :func:`convert`. An option out of range raises a FlashNormError."""

    bits: int = 4
    group_size: int = 64
    quantize: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool | float) or self.bits not in BITS:
            raise FlashNormError(f"bits {self.bits!r} is not supported; choose 4 or 8")
        if isinstance(self.group_size, float) or self.group_size not in GROUP_SIZES:
            raise FlashNormError(f"group size {self.group_size!r} is not supported; choose 32, 64 or 128")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise FlashNormError(f"dtype {self.dtype!r} is not known; choose one of {', '.join(DTYPES)}")

    @property
    def quantization(self) -> dict[str, int | str]:
        """The entry of config.json."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": "affine"}


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    target: Path
    plan: Plan
    source_bytes: int
    target_bytes: int
    source_tensors: int
    target_tensors: int
    check: SelfCheck


def convert(
    source: str | Path,
    target: str | Path,
    *,
    bits: int = 4,
    group_size: int = 64,
    quantize: bool = True,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fold a checkpoint's norms into its projections, quantise it and save it as a new folder.

    The result has the source's tensor names; a folded norm stays as an identity (ones, or zeros where the gain is
    1 + w), so stock mlx-lm loads it too. Tensors are read, folded in float32 and written one at a time. The target
    appears whole or not at all.

    Args:
        source: a folder or a hub repository, in full precision.
        target: the new folder's name; it must not exist.
        bits, group_size: of the affine quantisation: 4 or 8 bits, groups of 32, 64 or 128.
        quantize: False writes full precision.
        dtype: ``float32``, ``float16`` or ``bfloat16`` of what isn't quantised, and of the quantisation's scales.
            None: the source's.
        revision: a branch, tag or commit of the repository.
        progress: called with a word, the steps done and the steps in all.

    Returns:
        The target.

    Raises:
        FlashNormError: for a source that can't be read or is already quantised, a target that exists, a bad option,
            a full disk, or a result that fails its self-check.
    """
    options = Options(bits, group_size, quantize, dtype)
    return convert_with_report(source, target, options, revision=revision, progress=progress).target


def convert_with_report(
    source: str | Path,
    target: str | Path,
    options: Options,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """:func:`convert`, returning what was done."""
    progress = progress or (lambda word, done, total: None)
    path, target = resolve(source, revision), local(target)
    if target.exists() and target.samefile(path):
        raise FlashNormError(f"{target}: is the source; choose another target")
    check_globless(target.absolute())
    checkpoint = open_checkpoint(path)
    if checkpoint.config.get("quantization") or checkpoint.config.get("quantization_config"):
        raise FlashNormError(
            f"{path}: already quantised, so its gains can't be folded exactly; `flashnorm chat` runs it as it is, "
            "or convert the full-precision model"
        )
    model = configured(checkpoint, {})
    check_tensors(checkpoint, model)
    with new_folder(target) as work:
        recipe = _Recipe(checkpoint, model, options)
        parts = [*map(recipe.part, recipe.tensors), *recipe.missing_norms()]
        write_shards(work, parts, done=lambda n: progress("folding", n, len(parts)))
        (work / "config.json").write_text(json.dumps(recipe.config(), indent=4) + "\n", encoding="utf-8")
        for file in (file for pattern in CARRIED for file in path.glob(pattern) if file.is_file()):
            shutil.copyfile(file, work / file.name)
        check = self_check(path, work, progress, quantised=options.quantize)
        result = open_checkpoint(work)
    return Report(
        target=target,
        plan=recipe.plan,
        source_bytes=checkpoint.nbytes,
        target_bytes=result.nbytes,
        source_tensors=len(checkpoint.tensors),
        target_tensors=len(result.tensors),
        check=check,
    )


class _Recipe:
    """What each of a source's tensors becomes."""

    def __init__(self, checkpoint: Checkpoint, model: Decoder, options: Options) -> None:
        self.checkpoint, self.options, self.model, self.args = checkpoint, options, model, model.args
        self.tensors = model.headers(checkpoint.tensors)
        self.stored = model.stored({name: t.shape for name, t in checkpoint.tensors.items()})
        plan = model.plan(self.tensors)
        self.plan = plan.kept(UNWRITABLE) if plan.writers else plan
        fitting = [p for p, m in model.named_modules() if options.quantize and self._fits(m)]
        self.quantised = {f"{q}.weight" for p in fitting for q in (p, *model.stored_as(p, self.tensors))}
        self.folded = {f"{step.norm}.weight": step.fold for step in self.plan.gain_of.values()}
        # gains are small and read once; a norm's consumers may lie in other shards than the norm
        arrays = checkpoint.arrays()
        self.gains = {name: arrays[name] for name in self.folded}
        mx.eval(self.gains)

    def part(self, name: str) -> Part:
        """One source tensor's share of the result: the sizes now, the arrays when its turn comes."""
        tensor, stored = self.tensors[name], self.stored[name]
        dtype = FILE_DTYPES[tensor.dtype][1]
        assert dtype is not None

        def make() -> dict[str, mx.array]:
            source: mx.array = mx.load(str(tensor.file))[stored.name]  # type: ignore[assignment,call-overload]
            return self._written(name, source.T if stored.transposed else source)

        shapes = self._written(name, mx.zeros(tensor.shape, dtype))  # lazy: nothing is computed
        return Part({written: array.nbytes for written, array in shapes.items()}, make)

    def missing_norms(self) -> list[Part]:
        """Identities for norms that a folded source has dropped; stock loaders ask for them."""
        dtype, parts = DTYPES[self.options.dtype or "float32"], []
        for step in self.plan.steps:
            name = f"{step.norm}.weight"
            if "weight" in step.fold.parameters and name not in self.tensors:
                size = self.model.size_of(step.norm)
                identity = fold.identity_gain(mx.ones(size, dtype), plus_one=step.fold.plus_one)
                parts.append(Part({name: identity.nbytes}, lambda name=name, gain=identity: {name: gain}))  # type: ignore[misc]
        return parts

    def config(self) -> dict:
        """config.json of the result: the source's, with what was done, and with what loaders read differently said."""
        config = {**self.checkpoint.config, **self.args.for_stock()}
        config["flashnorm"] = {
            "version": 1,
            "folded": {step.norm: list(step.into) for step in self.plan.steps if not step.kept},
            "kept": {step.norm: step.kept for step in self.plan.steps if step.kept},
        }
        if self.options.quantize:
            config["quantization"] = config["quantization_config"] = self.options.quantization
        if self.options.dtype is not None:
            config |= {key: self.options.dtype for key in ("dtype", "torch_dtype") if key in config}
        return config

    def _fits(self, module: nn.Module) -> bool:
        """The same choice as mlx-lm's: linear and embedding layers whose rows are whole groups."""
        return hasattr(module, "to_quantized") and module["weight"].shape[-1] % self.options.group_size == 0

    def _written(self, name: str, source: mx.array) -> dict[str, mx.array]:
        """The tensors that are written for one of the source's; nothing is evaluated."""
        if not mx.issubdtype(source.dtype, mx.floating):
            return {name: source}
        as_it_is = not self.options.dtype or self.model.is_exact(name)
        dtype = source.dtype if as_it_is else DTYPES[self.options.dtype]  # type: ignore[index]
        if name in self.folded:
            return {name: fold.identity_gain(source, plus_one=self.folded[name].plus_one).astype(dtype)}
        value, stem = source.astype(mx.float32), name.removesuffix(".weight")
        step = self.plan.gain_of.get(stem) if name.endswith(".weight") else None
        if step is not None:
            gain, plus_one = self.gains[f"{step.norm}.weight"], step.fold.plus_one
            value = fold.fold_gain(value, gain, plus_one=plus_one, axis=step.axis(stem))
        return {k: v for n, a in self.model.arranged(name, value).items() for k, v in self._packed(n, a, dtype).items()}

    def _packed(self, name: str, value: mx.array, dtype: mx.Dtype) -> dict[str, mx.array]:
        if name not in self.quantised:
            return {name: value.astype(dtype)}
        stem = name.removesuffix(".weight")
        weight, scales, biases = mx.quantize(value, bits=self.options.bits, group_size=self.options.group_size)
        return {name: weight, f"{stem}.scales": scales.astype(dtype), f"{stem}.biases": biases.astype(dtype)}
