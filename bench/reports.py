"""What the scripts share that measure shapes as ``flashnorm bench`` does: arguments, reports, going on after errors.

A shape is measured on random weights; quantised ones are in the form that ``flashnorm convert`` leaves, unless
``--keep-gains``. Each shape is loaded once, and what is measured of it is written before the next.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from record import results_folder

from flashnorm_mlx.architectures.llama import TINY
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.loader import DTYPES, compute_dtype
from flashnorm_mlx.measure.arguments import ARMS
from flashnorm_mlx.measure.arms import described
from flashnorm_mlx.measure.command import measure, wired
from flashnorm_mlx.measure.loop import Timer, Trial
from flashnorm_mlx.measure.shapes import read_shape, shape_name
from flashnorm_mlx.measure.source import prepared

Report = dict[str, Any]

#: What config.json calls the positions that a model was made for.
POSITIONS = ("max_position_embeddings", "n_positions", "max_context_length", "max_sequence_length")

GROUP_SIZE = 64

#: Tokens in front of each row of a batch.
DEPTH = 16


def arguments(about: str | None, *, shapes: list[str], bits: list[int], arms: list[str] | None = None) -> Any:
    """A parser with what all have in common, and these defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", nargs="+", default=shapes, metavar="NAME", help=f"as flashnorm bench has it ({' '.join(shapes)})")
    add("--bits", type=int, nargs="+", choices=(0, 4, 8), default=bits, help=f"0: not quantised (default {bits})")
    add("--dtype", choices=DTYPES, help="computed in (default float16, on the CPU float32)")
    add("--keep-gains", action="store_true", help="quantised as stock mlx-lm does it, the gains not folded")
    add("--arms", nargs="+", choices=ARMS, default=arms or list(ARMS), help="in the order in which they take turns")
    add("--out", type=Path, help="folder for the results (default bench/results/<device>, with --quick a new one)")
    add("--quick", action="store_true", help="a tiny model, seconds on a CPU: whether it runs, not how fast")
    return parser


def settled(args: Namespace, **quick: Any) -> Namespace:
    """The arguments with their folder; with ``--quick``, of a tiny shape and with ``quick`` in place of the others."""
    if args.quick:
        vars(args).update(quick)
        args.out = args.out or Path(tempfile.mkdtemp(prefix="bench-"))
        args.shape = [str(tiny(args.out))]
    args.out = args.out or results_folder()
    args.out.mkdir(parents=True, exist_ok=True)
    args.dtype = dtype_of(args.dtype)
    return args


def dtype_of(name: str | None) -> str:
    """What a shape is computed in, by name."""
    return str(compute_dtype(name) or mx.float16).removeprefix("mlx.core.")


def tiny(folder: Path) -> Path:
    """A shape that is small enough for a test, as a file."""
    config = TINY | {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 192, "num_hidden_layers": 2}
    file = folder / "tiny" / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config), encoding="utf-8")
    return file.parent


def about(shape: str, bits: int, args: Namespace) -> dict[str, Any]:
    """What sets a row apart from those of other shapes and weights; the keys of :func:`record.save_row`."""
    return {
        "shape": shape_name(shape),
        "dtype": args.dtype,
        "bits": bits or None,
        "group_size": GROUP_SIZE if bits else None,
        "converted": bool(bits) and not args.keep_gains,
    }


def options(shape: str, bits: int, args: Namespace, repeat: int = 1) -> Namespace:
    """The arguments of ``flashnorm bench`` for one shape."""
    return Namespace(
        shape=shape,
        model=None,
        revision=None,
        bits=bits,
        group_size=GROUP_SIZE,
        dtype=args.dtype,
        converted=bool(bits) and not args.keep_gains,
        arms=args.arms,
        repeat=repeat,
        delay=0.0,
    )


def measured(shape: str, bits: int, trials: list[Trial], args: Namespace, repeat: int) -> Report:
    """The report of ``flashnorm bench`` for one shape, of these trials."""
    if not trials:
        raise FlashNormError(f"{shape}: the model has no positions for any of this")
    wanted = options(shape, bits, args, repeat)
    with prepared(wanted, trials, quiet) as source, wired():
        return measure(wanted, trials, source, Timer(), quiet)


def possible(shape: str, trials: list[Trial]) -> list[Trial]:
    """Those that the model has positions for."""
    config = read_shape(shape)
    limit = next((config[key] for key in POSITIONS if config.get(key)), sys.maxsize)
    return [t for t in trials if t.depth + t.prompt + t.generated <= limit]


def for_each(args: Namespace, work: Callable[[str, int], bool | None]) -> None:
    """Do the work for every shape and number of bits; one that fails doesn't stop the others, True does."""
    failed = 0
    for shape, bits in ((shape, bits) for shape in args.shape for bits in args.bits):
        start = time.perf_counter()
        name = f"{shape_name(shape)}, {f'{bits} bits' if bits else args.dtype}"
        try:
            if work(shape, bits):
                break
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: {described(error)}", flush=True)
        gc.collect()
        mx.clear_cache()
    print(f"results: {args.out}")
    if failed:
        sys.exit(f"{failed} failed")


def quiet(word: str, done: int, total: int) -> None:
    """No progress is shown."""
