"""Tokens a second of stock mlx-lm and our arms, in turn: decode, decode at depth and in batches, and prefill.

    python bench/speed.py                                    three shapes, at 4 bits
    python bench/speed.py --shape Llama-3.1-8B --depth 16 --batch --prefill --repeat 3 --tokens 64
    python bench/speed.py --shape Qwen3-0.6B --bits 0 8 4 --arms baseline flashnorm none

One report for each shape and number of bits, in the schema of ``flashnorm bench``, is in bench/results/<device> as soon
as it is measured.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from reports import DEPTH, about, arguments, for_each, measured, possible, settled
from rich.console import Console

from flashnorm_mlx.measure.files import as_json, write
from flashnorm_mlx.measure.loop import Trial
from flashnorm_mlx.measure.report import show


def parse(given: list[str] | None = None) -> Namespace:
    parser = arguments(__doc__, shapes=["SmolLM2-135M", "OpenELM-270M", "Llama-3.2-1B"], bits=[4])
    add = parser.add_argument
    add("--depth", type=int, nargs="*", default=[DEPTH, 1024, 4096], help="tokens in front of what is decoded")
    add("--batch", type=int, nargs="*", default=[2, 4, 8], help=f"rows that are decoded behind {DEPTH} tokens each")
    add("--prefill", type=int, nargs="*", default=[128, 512, 2048], help="lengths of prompts")
    add("--tokens", type=int, default=128, help="decoded in a repetition (default 128)")
    add("--repeat", type=int, default=5, help="repetitions (default 5)")
    return settled(parser.parse_args(given), depth=[4, 8], batch=[2], prefill=[6], tokens=3, repeat=2)


def trials(args: Namespace) -> list[Trial]:
    """What is measured of a shape."""
    found = [Trial("decode", 0, args.tokens, depth, 1) for depth in args.depth]
    found += [Trial("decode", 0, args.tokens, DEPTH, batch) for batch in args.batch]
    return found + [Trial("prefill", length, 0, 0, 1) for length in args.prefill]


def file_of(shape: str, bits: int, args: Namespace) -> Path:
    """Where a report goes."""
    facts = about(shape, bits, args)
    weights = [f"{bits}bit"] * bool(bits) + ["gains"] * bool(bits and args.keep_gains)
    return args.out / f"{'-'.join(['speed', facts['shape'], *weights, facts['dtype']])}.json"


def main() -> None:
    args = parse()
    console = Console()

    def work(shape: str, bits: int) -> bool:
        report = measured(shape, bits, possible(shape, trials(args)), args, args.repeat)
        if report["rows"]:
            write(as_json(report), str(file_of(shape, bits, args)))
        show(report, console)
        return bool(report["interrupted"])

    for_each(args, work)


if __name__ == "__main__":
    main()
