"""The arguments of ``flashnorm bench``. Nothing heavy is imported here: ``--help`` doesn't wait for MLX."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..errors import FlashNormError
from .ranges import number, numbers

EXAMPLES = """examples:
  flashnorm bench --list
  flashnorm bench --shape SmolLM2-135M --bits 4
  flashnorm bench --model mlx-community/SmolLM2-135M-Instruct -p 16,512-2048*2 -g 128 -d 0,4096 -b 1,4
  flashnorm bench --shape Qwen3-0.6B --json before.json
  flashnorm bench compare before.json after.json --relative-to mlx-lm

Trials are `pp` (prompt to first token), `tg` (the bare decode loop) and `pp+tg` (both, through mlx-lm's generate_step).
bench/README.md describes the JSON. Exit codes: 0, 1 an error or a regression, 2 wrong usage, 130 interrupted."""

#: In this order, and back, they take turns.
ARMS = ("mlx-lm", "baseline", "flashnorm", "none")


def add_arguments(parser: argparse.ArgumentParser, *, model: str, dtypes: tuple[str, ...]) -> None:
    """Fill in a subcommand's parser; its own subcommand, ``compare``, is ``args.action``."""
    what = parser.add_argument_group("what is measured")
    source = what.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="MODEL", help=model)
    source.add_argument("--shape", metavar="NAME", help="random weights in a public model's shape, or a config.json")
    source.add_argument("--list", action="store_true", help="name the shapes")
    what.add_argument("--arms", type=_arms, default=list(ARMS), metavar="A,B", help=f"default: {','.join(ARMS)}")
    what.add_argument("--bits", type=int, choices=(0, 4, 8), help="quantise so (default: 4 for a shape; 0: don't)")
    what.add_argument("--group-size", type=int, choices=(32, 64, 128), default=64, help="default: 64")
    what.add_argument(
        "--dtype", choices=dtypes, help="of all arms (default: the file's, for a shape float16; on the CPU float32)"
    )
    what.add_argument("--converted", action="store_true", help="a shape with its gains folded, as convert leaves it")
    what.add_argument("--revision", help="branch, tag or commit of a hub repository")
    sizes = parser.add_argument_group("sizes, as lists and ranges: 16,512-2048*2 or 0-64+16")
    sizes.add_argument("-p", "--prompt", type=_list(0), default=[512], metavar="N", help="prompt (default: 512)")
    sizes.add_argument("-g", "--generate", type=_list(0), default=[128], metavar="N", help="new tokens (default: 128)")
    sizes.add_argument("-d", "--depth", type=_list(0), default=[0], metavar="N", help="tokens before (default: 0)")
    sizes.add_argument("-b", "--batch", type=_list(1, 1024), default=[1], metavar="N", help="rows (default: 1)")
    how = parser.add_argument_group("how")
    how.add_argument("-r", "--repeat", type=number(1, 1000, int), default=5, metavar="N", help="default: 5")
    how.add_argument("--delay", type=number(0, 3600), default=0.0, metavar="S", help="seconds to cool before each run")
    out = parser.add_argument_group("output")
    for name in ("json", "jsonl", "csv", "markdown"):
        out.add_argument(f"--{name}", nargs="?", const="-", metavar="FILE", help="to a file, or standard output")
    out.add_argument("--plot", metavar="FILE", help="bars of the arms, .png or .svg (needs matplotlib)")

    actions = parser.add_subparsers(dest="action", metavar="compare", required=False)
    compare = actions.add_parser(
        "compare", help="two reports: exit code 1 if B is slower", description="What changed from report A to report B."
    )
    compare.add_argument("a", metavar="A.json")
    compare.add_argument("b", metavar="B.json")
    compare.add_argument(
        "--threshold",
        type=number(0, 100),
        default=2.0,
        metavar="PERCENT",
        help="a smaller change is none (default: 2)",
    )
    compare.add_argument(
        "--relative-to", choices=ARMS, metavar="ARM", help="compare ratios to this arm: the machine's own pace cancels"
    )


def _list(low: int, high: int = 10**7) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        try:
            return numbers(text, low=low, high=high)
        except FlashNormError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _arms(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in ARMS:
            raise argparse.ArgumentTypeError(f"{name!r} is not an arm; choose of {', '.join(ARMS)}")
    return [name for name in ARMS if name in names]
