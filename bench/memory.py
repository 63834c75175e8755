"""Memory that each arm takes, on its own: while it is loaded, loaded, in a prompt, and decoding.

    python bench/memory.py
    python bench/memory.py --shape Llama-3.1-8B --bits 4 8

``file``: bytes of the checkpoint that all load. ``loading``: the most that loading had in use (gains are folded and
layers stacked in it). ``active``: what stays. ``prompt`` and ``decode``: the most in use in a prompt of 2,048 tokens,
and in decoding behind it, model included. Writes memory.json in bench/results/<device>.
"""

from __future__ import annotations

import gc
from argparse import Namespace
from pathlib import Path
from typing import Any

import mlx.core as mx
from record import save_row
from reports import about, arguments, for_each, options, possible, quiet, settled

from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.measure.arms import described, load_arm
from flashnorm_mlx.measure.loop import Timer, Trial, decode
from flashnorm_mlx.measure.source import prepared


def parse(given: list[str] | None = None) -> Namespace:
    parser = arguments(__doc__, shapes=["SmolLM2-135M", "Llama-3.2-1B"], bits=[4])
    parser.add_argument("--prompt", type=int, default=2048, help="length (default 2048)")
    parser.add_argument("--tokens", type=int, default=64, help="decoded behind it (default 64)")
    return settled(parser.parse_args(given), prompt=6, tokens=3, bits=[4, 0])


def used(name: str, folder: Path, prompt: Trial, behind: Trial, dtype: str, vocabulary: int) -> dict[str, int]:
    """One arm's bytes; what was in use before is not its own."""
    timer = Timer()
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_arm(name, folder, dtype)
    timer.finish()
    found = {"loading": mx.get_peak_memory() - before, "active": mx.get_active_memory() - before}
    mx.reset_peak_memory()
    prompt.run(model, vocabulary, timer)
    found["prompt"] = mx.get_peak_memory() - before
    y, cache = behind.start(model, vocabulary, timer)
    mx.reset_peak_memory()
    decode(model, y, cache, behind.generated, timer)
    found["decode"] = mx.get_peak_memory() - before
    return found


def main() -> None:
    args = parse()

    def work(shape: str, bits: int) -> None:
        trials = [Trial("prefill", args.prompt, 0, 0, 1), Trial("decode", 0, args.tokens, args.prompt, 1)]
        if possible(shape, trials) != trials:
            raise FlashNormError("the model has not so many positions; try a shorter --prompt")
        facts = about(shape, bits, args) | {"prompt": args.prompt}
        arms: dict[str, Any] = {}
        with prepared(options(shape, bits, args), trials, quiet) as source:
            for name in args.arms:
                try:
                    arms[name] = used(name, source.folder, *trials, args.dtype, source.vocabulary)
                except Exception as error:  # the others go on
                    arms[name] = {"error": described(error)}
                print(f"{name}: {arms[name]}", flush=True)
            row = facts | {"tokens": args.tokens, "file": source.about["file_bytes"], "arms": arms}
        save_row(args.out, "memory", row, tuple(facts))

    for_each(args, work)


if __name__ == "__main__":
    main()
