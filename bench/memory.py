"""Memory that each arm takes, on its own: while it is loaded, loaded, in a prompt, and decoding.

    python bench/memory.py
    python bench/memory.py --shape Llama-3.1-8B --bits 4 8 --prompt 2048 --batch

``file``: bytes of the checkpoint that all load. ``loading``: the most that loading had in use (gains are folded and
layers stacked in it). ``active``: what stays. ``prompt`` and ``decode``: the most in use in a prompt (or several at
once), and in decoding behind it, model included. Writes memory.json in bench/results/<device>.
"""

from __future__ import annotations

import gc
from argparse import Namespace
from pathlib import Path
from typing import Any

import mlx.core as mx
from record import save_row
from reports import DEPTH, about, arguments, for_each, options, possible, quiet, settled

from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.measure.arms import described, load_arm
from flashnorm_mlx.measure.loop import Timer, Trial, decode
from flashnorm_mlx.measure.source import prepared


def parse(given: list[str] | None = None) -> Namespace:
    arms = ["mlx-lm", "flashnorm"]
    parser = arguments(__doc__, shapes=["SmolLM2-135M", "Llama-3.2-1B"], bits=[4], arms=arms)
    add = parser.add_argument
    add("--prompt", type=int, nargs="*", default=[128, 512, 2048], help="lengths (default 128 512 2048)")
    add("--batch", type=int, nargs="*", default=[8], help=f"prompts of {DEPTH} tokens at once (default 8)")
    add("--tokens", type=int, default=64, help="decoded behind them (default 64)")
    args = parser.parse_args(given)
    if min([*args.prompt, *args.batch, args.tokens], default=1) < 1 or not args.prompt + args.batch:
        parser.error("--prompt, --batch and --tokens: numbers of 1 or more, and a prompt or a batch")
    return settled(args, prompt=[6], batch=[2], tokens=3, bits=[4, 0])


def used(name: str, folder: Path, prompts: list[Trial], dtype: str, vocabulary: int) -> list[dict[str, int]]:
    """One arm's bytes in each of these prompts and behind it; what was in use before is not its own."""
    timer = Timer()
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_arm(name, folder, dtype)
    timer.finish()
    loaded = {"loading": mx.get_peak_memory() - before, "active": mx.get_active_memory() - before}
    found = []
    for prompt in prompts:
        mx.clear_cache()
        mx.reset_peak_memory()
        prompt.run(model, vocabulary, timer)
        most = mx.get_peak_memory() - before
        y, cache = behind(prompt).start(model, vocabulary, timer)
        mx.reset_peak_memory()
        decode(model, y, cache, prompt.generated, timer)
        found.append(loaded | {"prompt": most, "decode": mx.get_peak_memory() - before})
        del y, cache
    return found


def behind(prompt: Trial) -> Trial:
    """Decoding behind a prompt."""
    return Trial("decode", 0, prompt.generated, prompt.prompt, prompt.batch)


def main() -> None:
    args = parse()

    def work(shape: str, bits: int) -> None:
        sizes = [(length, 1) for length in args.prompt] + [(DEPTH, batch) for batch in args.batch]
        prompts = possible(shape, [Trial("prefill", length, args.tokens, 0, batch) for length, batch in sizes])
        if not prompts:
            raise FlashNormError(f"{shape}: the model has no positions for any of this")
        found: dict[str, Any] = {}
        with prepared(options(shape, bits, args), prompts, quiet) as source:
            for name in args.arms:
                try:
                    found[name] = used(name, source.folder, prompts, args.dtype, source.vocabulary)
                except Exception as error:  # the others go on
                    found[name] = [{"error": described(error)}] * len(prompts)
        for at, prompt in enumerate(prompts):
            facts = about(shape, bits, args) | {"prompt": prompt.prompt, "batch": prompt.batch}
            arms = {name: row[at] for name, row in found.items()}
            print(f"{prompt}: {arms}", flush=True)
            row = facts | {"tokens": args.tokens, "file": source.about["file_bytes"], "arms": arms}
            save_row(args.out, "memory", row, tuple(facts))

    for_each(args, work)


if __name__ == "__main__":
    main()
