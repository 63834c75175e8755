"""Speed on a GPU, on random weights in public models' shapes: decode, decode at depth, in batches, and prefill.

    python bench/gpu.py --shape SmolLM2-135M Llama-3.2-1B
    python bench/gpu.py --shape Qwen3-0.6B --depth 16 1024 8192 --batch 1 4 16 --prefill 128 512 2048 8192
    python bench/gpu.py --shape SmolLM2-135M --depth --prefill 2048      nothing but prefill

Stock mlx-lm and our arms take turns in one process, see contestants.py. Decode at batch 1 runs mlx-lm's generate_step;
--batch runs a plain loop, for batch 1 as well. A row is in gpu-decode.json, gpu-batch.json or gpu-prefill.json of
bench/results/<device> as soon as it is measured; what raises leaves its error there, and the rest goes on.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from contestants import CONTESTANTS, Measure, compare, decode, decode_batch, described, load_all, prefill
from random_model import parameters, read_shape, scratch_root, shape_name, write_random
from record import results_folder, save_row

KEYS = ("shape", "dtype", "bits", "group_size", "converted")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", nargs="+", required=True, help="names in models/shapes, or JSON files")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    add("--bits", type=int, choices=(0, 4, 8), default=4, help="0: not quantised (default 4, groups of 64)")
    add("--converted", action="store_true", help="gains folded before quantising, as `flashnorm convert` does it")
    add("--tokens", type=int, default=200, help="tokens decoded a repetition (default 200)")
    add("--repeat", type=int, default=5, help="repetitions behind each median (default 5)")
    add("--depth", type=int, nargs="*", default=[16], help="prompt lengths for decode (default 16)")
    add("--batch", type=int, nargs="*", default=[], help="batch sizes for decode behind 16 tokens")
    add("--prefill", type=int, nargs="*", default=[], help="prompt lengths for prefill")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="who is measured")
    add("--out", type=Path, help="folder for the JSON files (default bench/results/<device>)")
    return parser.parse_args()


def measurements(args: argparse.Namespace, vocabulary: int) -> list[tuple[str, dict[str, int], Measure]]:
    """Each row to measure: its table, what sets it apart from the table's others, and how it is measured."""
    mx.random.seed(1)

    def prompt(batch: int, length: int) -> mx.array:
        ids = mx.random.randint(0, vocabulary, (batch, length))
        mx.eval(ids)
        return ids

    depths = [("gpu-decode", {"depth": d}, partial(decode, ids=prompt(1, d), tokens=args.tokens)) for d in args.depth]
    batches = [
        ("gpu-batch", {"batch": b}, partial(decode_batch, ids=prompt(b, 16), tokens=args.tokens)) for b in args.batch
    ]
    prompts = [("gpu-prefill", {"length": n}, partial(prefill, ids=prompt(1, n))) for n in args.prefill]
    return depths + batches + prompts


def measure_shape(shape: str, scratch: Path, args: argparse.Namespace) -> None:
    """All rows of one shape."""
    out = args.out or results_folder()
    about: dict[str, Any] = {
        "shape": shape_name(shape),
        "dtype": args.dtype,
        "bits": args.bits or None,
        "group_size": 64 if args.bits else None,
        "converted": args.converted,
    }
    start = time.perf_counter()
    dtype = getattr(mx, args.dtype)
    folder = write_random(shape, scratch / "model", dtype=dtype, bits=args.bits, converted=args.converted)
    written = time.perf_counter()
    models, facts = load_all(folder, args.contestants)
    print(f"{about['shape']}: written in {written - start:.1f} s, loaded in {time.perf_counter() - written:.1f} s")
    for name in (name for name in facts if name not in models):
        print(f"  {name}: {facts[name]['error']}")
    for table, setting, measure in measurements(args, read_shape(shape)["vocab_size"]):
        start = time.perf_counter()
        found = compare(models, facts, measure, args.repeat)
        tokens = {} if table == "gpu-prefill" else {"tokens": args.tokens}
        row = about | setting | tokens | {"repeat": args.repeat, "contestants": found}
        save_row(out, table, row, (*KEYS, *setting))
        speeds = {name: c.get("tokens_per_second", "failed") for name, c in found.items()}
        print(f"  {table} {setting} {speeds} in {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    args = parse()
    width = (args.bits + 1) / 8 if args.bits else getattr(mx, args.dtype).size
    for shape in args.shape:
        try:
            with tempfile.TemporaryDirectory(dir=scratch_root(int(parameters(shape) * width))) as scratch:
                measure_shape(shape, Path(scratch), args)
        except Exception as error:  # the next shape goes on
            print(f"{shape}: {described(error)}", flush=True)
        gc.collect()
        mx.clear_cache()


if __name__ == "__main__":
    main()
