"""One norm and the projection behind it, on their own: in which form they are fastest, for 1 to 8192 rows.

    python bench/norm_then_project.py
    python bench/norm_then_project.py --size Llama-3.1-8B --rows 1 8 64 --bits 4

Forms of ``RMSNorm(x; g) Wᵀ``:

- ``sequential``: rms_norm with its gain, then the product; as stock mlx-lm has it.
- ``weightless``: the gain is folded into W; rms_norm without one, then the product.
- ``deferred``: the product, and 1/RMS beside it, which scales its result; in MLX's operations.
- ``two streams``: the same, 1/RMS on a stream of its own.
- ``kernel``: this project's, one launch; up to 8 rows, on a GPU.
- ``product``: the product alone, as if there were no norm.

Launches are timed behind one another (stopwatch.py), each with an input that waits for the one before and, as far as
``--footprint`` goes, with weights of its own, so that none is left out and no weights are in the cache. Writes
norm_then_project.json in bench/results/<device>; norm_then_project_plot.py draws it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # all launches of a measurement belong into one buffer; MLX reads these when it starts
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "100000")
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")

import mlx.core as mx
import mlx.nn as nn
from record import results_folder, save_row
from stopwatch import Stopwatch, timed

from flashnorm_mlx import fold
from flashnorm_mlx.kernels.dialect import backend
from flashnorm_mlx.kernels.packed import Packed, pack
from flashnorm_mlx.kernels.project import MAX_ROWS, project
from flashnorm_mlx.layers.linear import product
from flashnorm_mlx.layers.norm import settled

EPS, GROUP = 1e-5, 64

#: Inputs and outputs: q, k and v of three models, and gate and up of the last.
SIZES = {
    "SmolLM2-135M": (576, 960),
    "Llama-3.2-1B": (2048, 3072),
    "Llama-2-7B": (4096, 12288),
    "Llama-3.1-8B": (4096, 28672),
}
ROWS = (1, 2, 4, 8, 32, 256, 2048, 8192)

#: Launches of a measurement, and about how many multiplications and additions it has at most.
MOST, FEWEST, WORK = 256, 4, 4e12


class Layer(NamedTuple):
    """A projection, and the same as the kernel reads it (on a GPU)."""

    plain: nn.Module
    packed: Packed | None
    dtype: mx.Dtype


Form = Callable[[mx.array, Layer], mx.array]


def forms(gain: mx.array, rows: int, other: mx.Stream) -> dict[str, Form]:
    """Those that there are for so many rows; what can be fused of each in MLX's operations is compiled."""
    inverse_rms, beside = (mx.compile(lambda x: fold.inverse_rms(x, EPS)) for _ in range(2))  # one for each stream
    scaled = mx.compile(settled)

    def two_streams(x: mx.array, layer: Layer) -> mx.array:
        with mx.stream(other):
            s = beside(x)
        return scaled(product(layer.plain, x), s)

    def kernel(x: mx.array, layer: Layer) -> mx.array:
        assert layer.packed is not None
        return project(x, layer.packed, rows=rows, eps=EPS)

    found: dict[str, Form] = {
        "sequential": lambda x, layer: product(layer.plain, mx.fast.rms_norm(x, gain, EPS)),
        "weightless": lambda x, layer: product(layer.plain, mx.fast.rms_norm(x, None, EPS)),
        "deferred": lambda x, layer: scaled(product(layer.plain, x), inverse_rms(x)),
        "two streams": two_streams,
    }
    if rows <= MAX_ROWS and backend() is not None:
        found["kernel"] = kernel
    return found | {"product": lambda x, layer: product(layer.plain, x)}


def layers(inputs: int, outputs: int, bits: int, dtype: mx.Dtype, footprint: float) -> list[Layer]:
    """So many that they take ``footprint`` bytes together, two at least."""
    made: list[Layer] = []
    taken = 0
    while len(made) < 2 or (taken < footprint and len(made) < MOST):
        layer: Any = nn.Linear(inputs, outputs, bias=False)
        layer.set_dtype(dtype)
        layer = layer.to_quantized(GROUP, bits) if bits else layer
        mx.eval(layer.parameters())
        made.append(Layer(layer, None if backend() is None else pack(layer, dtype), dtype))
        taken += sum(value.nbytes for value in layer.parameters().values())
    return made


def measure(watch: Stopwatch, made: list[Layer], inputs: int, outputs: int, rows: int, other: mx.Stream) -> dict:
    """Every form's cost, or its error, and of how many launches it was taken."""
    count = int(min(MOST, max(FEWEST, WORK / (2 * rows * inputs * outputs))))
    x = mx.random.normal((rows, inputs)).astype(made[0].dtype)
    gain = mx.random.uniform(0.5, 1.5, (inputs,)).astype(made[0].dtype)
    mx.eval(x, gain)
    costs = {}
    for name, form in forms(gain, rows, other).items():
        costs[name] = timed(watch, lambda y, i, form=form: form(y, made[i % len(made)]), x, count)  # type: ignore[misc]
    return {"launches": count, "forms": costs}


def parse(given: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", nargs="+", choices=SIZES, default=list(SIZES), help="whose projection (default: all)")
    add("--rows", type=int, nargs="+", default=list(ROWS), help=f"default {ROWS}")
    add("--bits", type=int, nargs="+", choices=(0, 4, 8), default=[4, 0], help="0: not quantised (default 4 and 0)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    add("--footprint", type=float, default=128, help="MB of weights that the launches go through (default 128)")
    add("--gigabytes", type=float, default=0.5, help="of memory that keeps the device busy (default 0.5)")
    add("--out", type=Path, help="folder for the results (default bench/results/<device>, with --quick a new one)")
    add("--quick", action="store_true", help="a tiny projection, seconds on a CPU: whether it runs, not how fast")
    args = parser.parse_args(given)
    args.sizes = {name: SIZES[name] for name in args.size}
    if args.quick:
        args.sizes, args.rows, args.dtype, args.footprint, args.gigabytes = (
            {"tiny": (64, 96)},
            [1, 9],
            "float32",
            0,
            0.001,
        )
        args.out = args.out or Path(tempfile.mkdtemp(prefix="bench-"))
    args.out = args.out or results_folder()
    return args


def main() -> None:
    args = parse()
    dtype = getattr(mx, args.dtype)
    watch, other = Stopwatch(args.gigabytes), mx.new_stream(mx.default_device())
    for name, (inputs, outputs) in args.sizes.items():
        for bits in args.bits:
            made = layers(inputs, outputs, bits, dtype, args.footprint * 2**20)
            for rows in args.rows:
                facts = {"size": name, "inputs": inputs, "outputs": outputs, "dtype": args.dtype}
                facts |= {"bits": bits or None, "rows": rows}
                row = facts | measure(watch, made, inputs, outputs, rows, other)
                save_row(args.out, "norm_then_project", row, tuple(facts))
                print(facts, {form: cost.get("device_us", "failed") for form, cost in row["forms"].items()}, flush=True)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
