"""The ``flashnorm`` command: arguments, and where each subcommand goes."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import FlashNormError, Terminated, first_line
from .measure import arguments as bench_arguments
from .measure.ranges import number

EXAMPLES = {
    "chat": """examples:
  flashnorm chat                                        talk to the demo model
  flashnorm chat models/demo --system "Answer briefly." --stats
  echo "What is FlashNorm?" | flashnorm chat            all of the input is one message""",
    "generate": """examples:
  flashnorm generate models/demo -p "Tell me a story about a fox."
  flashnorm generate mlx-community/SmolLM2-135M-Instruct -p - < question.txt""",
    "convert": """examples:
  flashnorm convert models/demo demo-4bit
  flashnorm convert HuggingFaceTB/SmolLM2-135M-Instruct smol-8bit --bits 8
  flashnorm convert models/demo demo-folded --no-quantize""",
    "info": """examples:
  flashnorm info models/demo""",
    "verify": """examples:
  flashnorm verify models/demo
  flashnorm verify demo-4bit --text models/demo/heldout.jsonl""",
    "bench": bench_arguments.EXAMPLES,
    "serve": """examples:
  flashnorm serve models/demo --port 8080
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "What is FlashNorm?"}]}'""",
    "timing": """examples:
  flashnorm timing                                      the paper's Fig. 10, simulated
  flashnorm timing --n 4096 --k 14336 --m 256 --plot chart.png
  flashnorm timing --sweep
  flashnorm timing --predict SmolLM2-135M               speeds of machines that aren't here, predicted""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 an error that was said, 2 wrong usage, 130 interrupted."""
    _prepare_streams()
    args = _parser().parse_args(argv)
    if getattr(args, "model_option", None):
        args.model = args.model_option
    if args.command == "verify":  # exact float32 products, also on GPUs that would round them to TF32
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
    for name in (signal.SIGTERM, signal.SIGHUP):  # so that half-made files are removed then, too
        signal.signal(name, _interrupt)
    try:
        from . import commands

        run: Callable[[argparse.Namespace], int] = getattr(commands, args.command)
        return run(args)
    except FlashNormError as error:
        print(f"flashnorm: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # how MLX says that the device, or a compiler, failed or is full
        if type(error) not in (RuntimeError, MemoryError):
            raise
        print(f"flashnorm: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flashnorm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `flashnorm ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # of what is printed; files' errors are said where they are read and written
        place = f"{error.filename}: " if error.filename else ""
        print(f"flashnorm: {place}{error.strerror or error}", file=sys.stderr)
        with contextlib.suppress(OSError):  # else Python would try again to write what is left, and say so
            sys.stdout.close()
        return 1


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise Terminated


def _prepare_streams() -> None:
    """Standard streams that are there, and can show any text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next file that is opened would take its place
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashnorm",
        description="Run language models with MLX, their norms off the decode path (FlashNorm, arXiv 2407.09577).",
        epilog="`flashnorm COMMAND --help` has examples.",
    )
    parser.add_argument("--version", action="version", version=f"flashnorm-mlx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    chat = _command(commands, "chat", "talk to a model in the terminal")
    chat.add_argument("model", nargs="?", metavar="MODEL", help=f"{_MODEL} (default: the demo that ships)")
    chat.add_argument("--model", dest="model_option", metavar="MODEL", help=argparse.SUPPRESS)  # as mlx-lm has it
    _add_loading(chat)
    _add_sampling(chat, max_tokens=1024, temp=0.7, top_p=0.95)
    chat.add_argument("--system", metavar="TEXT", help="system prompt")
    chat.add_argument("--markdown", action="store_true", help="render answers as markdown")
    chat.add_argument("--stats", action="store_true", help="show speed and memory after each answer")
    chat.add_argument(
        "--max-context", type=number(16, 10**8, int), metavar="N", help="tokens of context (default: the model's)"
    )

    generate = _command(commands, "generate", "answer one prompt")
    generate.add_argument("model", metavar="MODEL", help=_MODEL)
    generate.add_argument("-p", "--prompt", required=True, help="the prompt; - reads it from standard input")
    generate.add_argument("--system", metavar="TEXT", help="system prompt")
    generate.add_argument("--raw", action="store_true", help="send the prompt as it is, without the chat template")
    generate.add_argument("--stats", action="store_true", help="show speed and memory on standard error")
    _add_loading(generate)
    _add_sampling(generate, max_tokens=256, temp=0.0, top_p=1.0)

    convert = _command(commands, "convert", "fold a model's norms and quantise it")
    convert.add_argument("source", metavar="SRC", help=_MODEL)
    convert.add_argument("target", metavar="DST", help="the new folder; it must not exist")
    convert.add_argument("--bits", type=int, choices=(4, 8), help="bits a weight (default: 4)")
    convert.add_argument("--group-size", type=int, choices=(32, 64, 128), help="default: 64")
    convert.add_argument("--no-quantize", action="store_true", help="fold only")
    convert.add_argument("--dtype", choices=_DTYPES, help="of what isn't quantised (default: the source's)")
    convert.add_argument("--revision", help="branch, tag or commit of a hub repository")

    info = _command(commands, "info", "what a model is, and what becomes of each of its norms")
    info.add_argument("model", metavar="MODEL", help=_MODEL)
    info.add_argument("--revision", help="branch, tag or commit of a hub repository")
    info.add_argument("--dtype", choices=_DTYPES, help="to compute in (default: the file's; float32 on the CPU)")

    verify = _command(
        commands, "verify", "compare our forms of a model (flashnorm, explicit norms, no norms) with stock mlx-lm"
    )
    verify.add_argument("model", metavar="MODEL", help=_MODEL)
    verify.add_argument(
        "--text",
        metavar="FILE",
        help="text, or .jsonl of chats, for the perplexity (default: the model's heldout.jsonl)",
    )
    verify.add_argument("--max-tokens", type=_positive, default=512, help="tokens of the text to read (default: 512)")
    verify.add_argument("--greedy-tokens", type=_positive, default=48, help="tokens to decode (default: 48)")
    verify.add_argument(
        "--tolerance", type=number(0, math.inf), default=1e-4, help="largest relative logit error (default: 1e-4)"
    )
    verify.add_argument("--revision", help="branch, tag or commit of a hub repository")

    bench = _command(commands, "bench", "tokens a second of stock mlx-lm and of our three forms, in turn")
    bench_arguments.add_arguments(bench, model=_MODEL, dtypes=_DTYPES)

    serve = _command(commands, "serve", "mlx-lm's HTTP server (OpenAI's chat completions), running this engine")
    serve.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_loading(serve)
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    serve.add_argument("--port", type=number(1, 65535, int), default=8080, help="default: 8080")

    timing = _command(commands, "timing", "simulate the paper's machine, and predict decode speeds from bandwidths")
    timing.add_argument("--n", type=_positive, default=512, help="inputs of the projection (default: 512)")
    timing.add_argument("--k", type=_positive, help="outputs (default: as many as inputs)")
    timing.add_argument("--m", type=_positive, default=128, help="width of the units (default: 128)")
    instead = timing.add_mutually_exclusive_group()
    instead.add_argument("--sweep", action="store_true", help="over n/m, with k in the same ratio to n")
    instead.add_argument("--predict", metavar="SHAPE", help="a name in models/shapes, a config.json, or a folder")
    timing.add_argument("--bits", type=int, choices=(0, 4, 8), help="of predicted weights; 0: 16 (default: 4)")
    timing.add_argument("--depth", type=number(0, 10**7, int), help="predicted behind so many tokens (default: 0)")
    timing.add_argument("--check", action="store_true", help="with --predict: each measured row beside its prediction")
    timing.add_argument("--plot", metavar="FILE", help="draw the same as a picture (needs matplotlib)")
    return parser


_MODEL = "a folder, or a Hugging Face repository (org/name)"
_DTYPES = ("float32", "float16", "bfloat16")


def _command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        description=(what if what.startswith("mlx-lm") else what[0].upper() + what[1:]) + ".",
        epilog=EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--arm",
        choices=("baseline", "flashnorm", "none"),
        default="flashnorm",
        help="explicit norms, FlashNorm (default), or no norms (wrong output, the upper bound on speed)",
    )
    group.add_argument("--dtype", choices=_DTYPES, help="to compute in (default: the file's; float32 on the CPU)")
    group.add_argument(
        "--kernels",
        choices=("auto", "reference", "fused"),
        default="auto",
        help="auto: whichever proves faster (default); reference: plain MLX operations; fused: kernels only",
    )
    group.add_argument("--revision", help="branch, tag or commit of a hub repository")


def _add_sampling(parser: argparse.ArgumentParser, *, max_tokens: int, temp: float, top_p: float) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=_positive, default=max_tokens, metavar="N", help=f"default: {max_tokens}")
    group.add_argument(
        "--temp", type=number(0, 5), default=temp, metavar="T", help=f"temperature, 0 is greedy (default: {temp:g})"
    )
    group.add_argument(
        "--top-p", type=number(0, 1), default=top_p, metavar="P", help=f"nucleus, 1 is off (default: {top_p:g})"
    )
    group.add_argument("--top-k", type=number(0, 10**6, int), default=0, metavar="K", help="default: 0, off")
    group.add_argument("--min-p", type=number(0, 1), default=0.0, metavar="P", help="default: 0, off")
    group.add_argument("--repetition-penalty", type=number(0.1, 10), default=1.0, metavar="R", help="default: 1, off")
    group.add_argument("--seed", type=number(0, 2**32 - 1, int), metavar="N", help="makes sampled answers repeatable")


_positive = number(1, 10**6, int)
