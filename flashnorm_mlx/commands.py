"""What each subcommand of ``flashnorm`` does, once its arguments are parsed. Each returns the exit code."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .errors import FlashNormError
from .info import Info, describe_weights, device_name, dtype_name
from .loader import Progress as ProgressCallback
from .loader import has_tokenizer, load, resolve
from .paths import local

logging.getLogger("transformers").setLevel(logging.ERROR)  # a prompt's length is our care

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def chat(args: Namespace) -> int:
    from . import chat as terminal
    from .demo import converted_demo

    settings = _settings(args)
    if args.model is None:
        with _progress() as progress:
            args.model = str(converted_demo(progress))
        name = "demo"
    else:
        name = args.model
    model, tokenizer = _load(args)
    return terminal.chat(model, tokenizer, settings, name=name)


def generate(args: Namespace) -> int:
    from .chat.screen import write
    from .chat.session import Session
    from .chat.terminal import ending

    prompt = args.prompt
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace") if sys.stdin else ""
    if not prompt.strip():
        raise FlashNormError("the prompt is empty; give one with -p")
    settings = _settings(args)
    session = Session(*_load(args), settings, lambda line: _err.print(line, markup=False, soft_wrap=True), raw=args.raw)
    write(session.send(prompt))
    if line := ending(session):
        _err.print(line, style="dim", markup=False, soft_wrap=True)
    if args.stats:
        _err.print(session.answers[-1].line(), style="dim", soft_wrap=True)
    return 0


def convert(args: Namespace) -> int:
    from .converter import Options, convert_with_report

    if args.no_quantize and (args.bits or args.group_size):
        raise FlashNormError("--no-quantize goes without --bits and --group-size")
    options = Options(args.bits or 4, args.group_size or 64, not args.no_quantize, args.dtype)
    with _progress() as progress:
        report = convert_with_report(args.source, args.target, options, revision=args.revision, progress=progress)
    folded = sum(1 for step in report.plan.steps if not step.kept)
    others = "; the others:" if folded < len(report.plan.steps) else ""
    _out.print(f"{folded} of {len(report.plan.steps)} norms folded{others}")
    for norm, kept in dict.fromkeys((step.fold.norm, step.kept) for step in report.plan.steps if step.kept):
        _out.print(f"  {norm}: {kept}", markup=False)
    _out.print(
        f"{report.source_bytes / 1e6:.1f} MB in {report.source_tensors} tensors -> "
        f"{report.target_bytes / 1e6:.1f} MB in {report.target_tensors} tensors"
    )
    check = report.check
    _out.print(
        f"folding alone: logits agree to {check.fold_error:.0e} in float32 (largest error, relative)",
        soft_wrap=True,
    )
    rounded = f"{options.bits}-bit weights" if options.quantize else "rounding to the file's dtype"
    _out.print(
        f"with {rounded}: to {check.target_error:.0e}, on {check.positions} arbitrary tokens; "
        f"`flashnorm verify --text FILE` measures text",
        soft_wrap=True,
    )
    _out.print(f"{report.target}", markup=False, soft_wrap=True)
    if not has_tokenizer(report.target):
        _err.print("It has no tokenizer, for its source has none: copy tokenizer.json into it to chat.", soft_wrap=True)
    return 0


def info(args: Namespace) -> int:
    from .info import inspect

    _show_info(inspect(resolve(args.model, args.revision), args.dtype))
    return 0


def verify(args: Namespace) -> int:
    from .verify import verify as run

    path = resolve(args.model, args.revision)
    with _progress() as progress:
        found = run(
            path,
            text=local(args.text) if args.text is not None else None,
            max_tokens=args.max_tokens,
            greedy_tokens=args.greedy_tokens,
            tolerance=args.tolerance,
            progress=progress,
        )
    table = Table("arm", "logit error", "greedy tokens differ", "perplexity", "")
    table.add_row("mlx-lm", "", "", f"{found.reference_perplexity:.6g}", "the reference")
    for r in found.results:
        first = "no" if r.first_difference is None else f"from {r.first_difference + 1} of {found.greedy_tokens}"
        verdict = "not judged" if r.arm == "none" else "ok" if r.ok else "DIFFERS"
        table.add_row(r.arm, f"{r.logit_error:.1e}", first, f"{r.perplexity:.6g}", verdict)
    _out.print(table)
    _out.print("float32; the largest logit error is relative to the largest logit", style="dim")
    _out.print(f"perplexity of {found.tokens} tokens of {found.text}", style="dim", markup=False, soft_wrap=True)
    return 0 if found.ok else 1


def bench(args: Namespace) -> int:
    from .measure.command import bench as run

    return run(args, _out, _err, _progress)


def serve(args: Namespace) -> int:
    from .serve import check_address
    from .serve import serve as run

    check_address(args.host, args.port)
    model, tokenizer = _load(args)
    _err.print(f"http://{args.host}:{args.port}/v1/chat/completions (Ctrl-C ends)", style="dim", soft_wrap=True)
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    return run(model, tokenizer, name=name, host=args.host, port=args.port)


def timing(args: Namespace) -> int:
    from .measure import timing_report

    k = args.k or args.n
    predicted = {"--bits": args.bits is not None, "--depth": args.depth is not None, "--check": args.check}
    if args.predict is None and any(predicted.values()):
        raise FlashNormError(f"{next(o for o, given in predicted.items() if given)} goes with --predict SHAPE")
    if args.predict is not None:
        bits = 4 if args.bits is None else args.bits
        report = timing_report.prediction(
            args.predict, bits=bits, depth=args.depth or 0, plot=args.plot, details=args.check
        )
    elif args.sweep:
        report = timing_report.sweep(args.n, k, args.m, plot=args.plot)
    else:
        report = timing_report.cycles(args.n, k, args.m, width=_out.width, plot=args.plot)
    _out.print(report.shown)
    if report.picture:
        _out.print(report.picture, markup=False, soft_wrap=True)
    return 0


def _settings(args: Namespace) -> Any:
    """The chat's settings, as far as the subcommand has them."""
    from .chat import Settings

    return Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})


def _load(args: Namespace) -> tuple[Any, Any]:
    """Load a model with a progress bar, and say in one line what was chosen."""
    path = resolve(args.model, args.revision)
    with _progress() as progress:
        model, tokenizer = load(path, arm=args.arm, dtype=args.dtype, kernels=args.kernels, progress=progress)
    _err.print(describe(path, model), style="dim", markup=False, soft_wrap=True)
    return model, tokenizer


def describe(path: Path, model: Any) -> str:
    """``llama, 4-bit (group 64), flashnorm, float32 on cpu``: what was chosen, in one line."""
    from .checkpoint import open_checkpoint

    computing = model.args.compute_dtype
    dtype = f"{dtype_name(computing)} on " if computing else ""
    weights = describe_weights(open_checkpoint(path))
    kernels = ", fused kernels" if model.kernels == "fused" else ""
    return f"{model.model_type}, {weights}, {model.args.arm}, {dtype}{device_name()}{kernels}"


def _show_info(info: Info) -> None:
    facts = Table.grid(padding=(0, 2))
    for key, value in (
        ("model", str(info.path)),
        ("architecture", f"{info.model_type}, {info.layers} layers, {info.parameters / 1e6:.1f} M parameters"),
        ("weights", f"{info.weights}, {info.file_bytes / 1e6:.1f} MB"),
        (
            "each token reads",
            f"{info.bytes_per_token / 1e6:.1f} MB, and {info.cache_bytes_per_position} bytes for each token of context",
        ),
        ("computes in", f"{info.compute_dtype} on {info.device}"),
    ):
        facts.add_row(key, value)
    _out.print(facts)
    norms = Table.grid(padding=(0, 2))
    for fate in info.norms:
        norms.add_row(
            f"{fate.count} × {fate.norm.rpartition('.')[2]}", f"into {', '.join(fate.into)}" if fate.into else ""
        )
        for what in ("gain", "bias", "mean", "scale"):
            if getattr(fate, what):
                norms.add_row("", f"{what}: {getattr(fate, what)}")
    _out.print()
    _out.print(norms)
    _out.print()
    _out.print("decoding")
    for line in info.kernels:
        _out.print(f"  {line}", markup=False, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """A progress bar on standard error that disappears when the work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def update(word: str, done: int, total: int) -> None:
            if word not in tasks:
                tasks[word] = bar.add_task(word)
            bar.update(tasks[word], completed=done, total=total)

        yield update
