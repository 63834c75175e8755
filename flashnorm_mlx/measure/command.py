"""``flashnorm bench``: from arguments to a report, and where it goes."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from ..errors import FlashNormError
from ..loader import Progress, check_options
from . import files, machine
from .arms import load_all
from .launches import launches
from .loop import Timer, Trial, trials
from .report import show
from .session import Session
from .shapes import read_shape, shape_names
from .source import Source, prepared
from .statistics import LEVEL, SEED
from .traffic import bandwidth

INTERRUPTED = 130


def bench(
    args: Namespace,
    out: Console,
    err: Console,
    progress: Callable[[], AbstractContextManager[Progress]],
    timer: Timer | None = None,
) -> int:
    """Run the subcommand; returns the exit code: 0, 1 for a regression, 130 interrupted.

    Raises:
        FlashNormError: for arguments that don't go together, and all that :func:`source.prepared` raises.
    """
    if args.action == "compare":
        return compare_files(args, out)
    if args.list:
        for name in shape_names():
            out.print(f"{name}  {read_shape(name)['model_type']}", markup=False)
        return 0
    planned = check(args)
    if args.plot:
        from . import plot

        plot.check()
    with progress() as update, prepared(args, planned, update) as source, wired():
        report = measure(args, planned, source, timer or Timer(), update)
    deliver(report, args, out, err)
    return INTERRUPTED if report["interrupted"] else 0


def check(args: Namespace) -> list[Trial]:
    """The trials, if the arguments go together."""
    if not args.model and not args.shape:
        raise FlashNormError("what to measure? give --model MODEL or --shape NAME (`flashnorm bench --list`)")
    if args.converted and not args.shape:
        raise FlashNormError(
            "--converted goes with --shape; convert a model with `flashnorm convert`, and measure that"
        )
    if args.revision and not args.model:
        raise FlashNormError("--revision goes with --model")
    targets = [target for name in files.FORMATS if (target := getattr(args, name))]
    if targets.count("-") > 1:
        raise FlashNormError("only one format can go to standard output; give the others a file")
    if len({os.path.realpath(target) for target in targets}) < len(targets):
        raise FlashNormError("each format needs a file of its own")
    check_options("flashnorm", os.environ.get("FLASHNORM_KERNELS") or "auto")
    for target in [*targets, *([args.plot] if args.plot else [])]:
        files.check_target(target)
    planned = trials(args.prompt, args.generate, args.depth, args.batch)
    if not planned:
        raise FlashNormError("nothing to measure: -p and -g are both 0")
    return planned


@contextlib.contextmanager
def wired() -> Any:
    """Weights stay in memory while they are measured, as mlx-lm's generate has it (on Apple silicon)."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)


def measure(args: Namespace, planned: list[Trial], source: Source, timer: Timer, progress: Progress) -> dict[str, Any]:
    """The report of all trials, see files.py; ended by Ctrl-C, of those until then."""
    with contextlib.redirect_stdout(sys.stderr):  # whatever the libraries print
        facts = machine.machine()
        models, loading, unavailable = load_all(source.folder, args.arms, args.dtype, timer, progress)
        if not models:
            reasons = dict.fromkeys(unavailable.values())
            raise FlashNormError(f"none of the arms could be loaded: {'; '.join(reasons)}")
        memory = bandwidth(timer)
        session = Session(
            models,
            loading,
            source.vocabulary,
            repeat=args.repeat,
            delay=args.delay,
            traffic=source.traffic,
            bandwidth=max(memory.values()),
            launches=launches,
            timer=timer,
            progress=progress,
        )
        rows = session.rows(planned)
    return {
        "schema": files.SCHEMA,
        "version": files.VERSION,
        "machine": facts,
        "model": source.about,
        "settings": {
            "arms": args.arms,
            "repeat": args.repeat,
            "delay": args.delay,
            "seed": SEED,
            "level": LEVEL,
        },
        "bandwidth": memory,
        "loading": loading,
        "unavailable": unavailable,
        "interrupted": session.interrupted,
        "warnings": machine.warnings(facts),
        "rows": rows,
    }


def deliver(report: dict[str, Any], args: Namespace, out: Console, err: Console) -> None:
    """Write the files, and show the table where no file goes: standard output, or standard error beside one."""
    targets = {name: target for name in files.FORMATS if (target := getattr(args, name))}
    show(report, err if "-" in targets.values() else out)
    for name, target in targets.items():
        files.write(files.FORMATS[name](report), target)
    if args.plot and report["rows"]:
        from . import plot

        plot.plot(report, args.plot)


def compare_files(args: Namespace, out: Console) -> int:
    """Print what changed; 1 if anything became slower."""
    from .compare import compare, differences, line, tolerance

    a, b = files.read(args.a), files.read(args.b)
    options = {"threshold": args.threshold / 100, "relative_to": args.relative_to}
    changes, allowed = compare(a, b, **options), 100 * tolerance(a, b, **options)
    unit = f"× {args.relative_to}" if args.relative_to else "tok/s"
    table = Table("test", "arm", f"{unit}, A", f"{unit}, B", "B ÷ A", "")
    for change in changes:
        table.add_row(*line(change))
    if not out.is_terminal:
        out.width = max(out.width, 120)
    out.print(table)
    for difference in differences(a, b):
        out.print(f"not the same: {difference}", markup=False, soft_wrap=True)
    slower = sum(change.verdict == "slower" for change in changes)
    unsure = sum(change.verdict == "unsure" for change in changes)
    if allowed > args.threshold:
        hint = "" if args.relative_to else "; --relative-to mlx-lm takes out what all rows have in common"
        out.print(f"mlx-lm itself moved by up to {allowed:.1f} %: so much is the machine's{hint}", soft_wrap=True)
    out.print(
        f"{slower} of {len(changes)} slower by more than {allowed:.2g} %"
        + (f"; {unsure} can't be told from these repetitions" if unsure else ""),
        soft_wrap=True,
    )
    return 1 if slower else 0
