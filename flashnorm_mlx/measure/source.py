"""What is measured: a checkpoint, or random weights in a shape, as a folder that every arm can load."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model as load_stock
from mlx_lm.utils import quantize_model

from .. import architectures
from ..architectures.base import named_arrays
from ..checkpoint import open_checkpoint
from ..errors import FlashNormError
from ..info import Info, dtype_name, inspect
from ..loader import DTYPES, compute_dtype, resolve
from . import memory
from .arms import Progress
from .loop import Trial
from .random_model import parameters, scratch_root, write_random
from .shapes import read_shape, shape_name
from .traffic import Traffic, traffic


@dataclass(frozen=True)
class Source:
    """A folder, what the report says about it, and what decoding reads of it."""

    folder: Path
    about: dict[str, Any]
    vocabulary: int
    traffic: Traffic | None


@contextlib.contextmanager
def prepared(args: Namespace, trials: list[Trial], progress: Progress) -> Iterator[Source]:
    """The checkpoint that the arguments of ``flashnorm bench`` name; what has to be written is removed in the end.

    Raises:
        FlashNormError: if it can't be had, or wants more memory than there is.
    """
    if args.shape:
        bits = 4 if args.bits is None else args.bits or None
        dtype = compute_dtype(args.dtype) or mx.float16
        width = cache_width(args)
        count = parameters(args.shape)
        size = memory.weight_bytes(count, size=dtype.size, bits=bits, group_size=args.group_size)
        root = scratch_root(size)
        in_memory = root == "/dev/shm" and mx.default_device() == mx.cpu  # of a GPU's own memory it takes none
        check_memory(args, trials, width, shape_name(args.shape), size, scratch=size if in_memory else 0)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            progress("writing random weights", 0, 1)
            with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints
                folder = write_random(
                    args.shape,
                    Path(scratch) / "model",
                    dtype=dtype,
                    bits=bits,
                    group_size=args.group_size,
                    converted=args.converted,
                )
            progress("writing random weights", 1, 1)
            yield described(folder, shape_name(args.shape), "shape", args)
        return
    folder = resolve(args.model, args.revision)
    checkpoint = open_checkpoint(folder)
    check_memory(args, trials, cache_width(args), str(args.model), checkpoint.nbytes)
    if not args.bits:
        yield described(folder, str(args.model), "model", args)
        return
    if held := quantization(checkpoint.config):
        if held != (args.bits, args.group_size):
            raise FlashNormError(f"{args.model} is quantised already, to {held[0]} bits in groups of {held[1]}")
        yield described(folder, str(args.model), "model", args)
        return
    with tempfile.TemporaryDirectory(dir=scratch_root(checkpoint.nbytes)) as scratch:
        target = quantised(folder, Path(scratch) / "model", args, progress)
        yield described(target, str(args.model), "model", args)


def check_memory(args: Namespace, trials: list[Trial], width: int, name: str, size: int, scratch: int = 0) -> None:
    """Raise a FlashNormError if weights of ``size`` bytes, once for each arm, and the largest cache don't fit."""
    positions = max((t.batch * (t.depth + t.prompt + t.generated) for t in trials), default=0)
    each = width * (compute_dtype(args.dtype) or mx.float16).size
    want = memory.needed(size, len(args.arms), positions * each, scratch)
    memory.check(want, memory.available(), f"{name} in {len(args.arms)} arms")


def cache_width(args: Namespace) -> int:
    """Numbers that a position takes in the caches of all layers; 0 for a family that isn't ours."""
    config = read_shape(args.shape) if args.shape else open_checkpoint(resolve(args.model, args.revision)).config
    if config.get("model_type") not in architectures.supported():
        return 0
    try:
        return int(architectures.find(config["model_type"]).Config.from_dict(config).cache_width_of_all)
    except FlashNormError as error:
        raise FlashNormError(f"{args.shape or args.model}: {error}") from None


def quantization(config: dict[str, Any]) -> tuple[Any, Any] | None:
    """Bits and group size of a quantised checkpoint's config."""
    entry = config.get("quantization") or config.get("quantization_config")
    return (entry.get("bits"), entry.get("group_size")) if isinstance(entry, dict) else None


def quantised(source: Path, folder: Path, args: Namespace, progress: Progress) -> Path:
    """A checkpoint as stock mlx-lm quantises it, its gains kept."""
    progress("quantising", 0, 1)
    with contextlib.redirect_stdout(io.StringIO()):
        model, config = load_stock(source, lazy=True)
        dtype = compute_dtype(args.dtype)
        if dtype is not None:
            model.set_dtype(dtype)
        model, config = quantize_model(model, config, args.group_size, args.bits)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(named_arrays(model)))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in (*source.glob("tokenizer*"), *source.glob("*.jinja")):
        shutil.copyfile(file, folder / file.name)
    progress("quantising", 1, 1)
    return folder


def described(folder: Path, name: str, source: str, args: Namespace) -> Source:
    """A folder with its facts; those that only our own model of it tells are None for a family that isn't ours."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    info: Info | None = None
    read: Traffic | None = None
    with contextlib.suppress(FlashNormError):
        info = inspect(folder, args.dtype)
        read = traffic(folder, DTYPES[info.compute_dtype])
    bits, group_size = quantization(config) or (None, None)
    computing = compute_dtype(args.dtype)
    about = {
        "name": name,
        "source": source,
        "converted": bool(args.converted),
        "model_type": config.get("model_type"),
        "bits": bits,
        "group_size": group_size,
        "dtype": info.compute_dtype if info else dtype_name(computing) if computing else None,
        "parameters": info.parameters if info else None,
        "file_bytes": checkpoint.nbytes,
    }
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise FlashNormError(f"{folder}: config.json: vocab_size must be a positive integer, not {vocabulary!r}")
    return Source(folder, about, vocabulary, read)
