"""The operations of one decode step, each on its own: MLX's sequence of kernels, ours, and what memory would allow.

    python bench/kernels.py                                     needs a GPU: elsewhere there is nothing of ours
    python bench/kernels.py --shape Qwen3-0.6B --depth 8192

Every launch has weights of its own, 128 MB of them in all, so that none are in the cache. The floor is the bytes that
a launch must read (weights, or the cached keys and values) over the measured bandwidth. MLX's side reads q, k and v,
and gate and up, as one matrix each, which is kinder to it than mlx-lm's separate products. Writes gpu-kernels.json in
bench/results/<device>.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # all launches of a measurement belong into one buffer; MLX reads these when it starts
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "100000")
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import KVCache
from random_model import read_shape, shape_name
from record import results_folder, save_row
from reports import settled
from stopwatch import Stopwatch, timed

from flashnorm_mlx.kernels.attend import Heads, attend, default_layout, step_rows
from flashnorm_mlx.kernels.packed import pack
from flashnorm_mlx.kernels.project import project
from flashnorm_mlx.measure.arms import described

KEYS = ("shape", "dtype", "bits", "group_size", "batch", "depth", "operation")
GROUP = 64
EPS = 1e-5
#: Launches of a measurement; of 64, spreads were 1 to 4 µs.
FEWEST = 256


@dataclass(frozen=True)
class Setting:
    """One block's sizes, and how its weights and activations are held."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    dtype: mx.Dtype
    bits: int
    batch: int
    depth: int
    #: Bytes that the weights of all launches take together, at least.
    footprint: int

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class Operation:
    """One of the operations: what a launch takes and must read, and MLX's kernels for it."""

    name: str
    #: The activations that come from the operation before.
    x: mx.array
    #: What each launch reads from memory: a :data:`Weight`, or a :class:`KVCache`.
    parts: list[Any]
    #: The bytes of one part.
    nbytes: int
    mlx: Callable[[mx.array, Any], mx.array]
    #: What is added to the result, where something is.
    residual: mx.array


#: Packed weight, scales and biases; or one full-precision matrix.
Weight = tuple[mx.array, ...]


def ours(operation: Operation, setting: Setting) -> Callable[[mx.array, Any], mx.array] | None:
    """Our kernel for an operation, called as ``operation.mlx`` is; None where it is part of another one (RoPE)."""
    packed: dict[int, Any] = {}
    rows, first = setting.batch, operation.name.split(",")[0]

    def projected(x: mx.array, part: Weight) -> mx.array:
        if id(part) not in packed:
            packed[id(part)] = pack(_layer(setting, part), setting.dtype)
        epilogue: dict[str, Any] = {"eps": EPS} if first == "norm" else {}
        if operation.name.endswith("add"):
            epilogue["residual"] = operation.residual
        if operation.name.endswith("silu"):
            epilogue["activation"] = "silu"
        return project(x.reshape(rows, -1), packed[id(part)], rows=rows, **epilogue)

    heads = Heads(setting.heads, setting.kv_heads, setting.head_dim, setting.head_dim**-0.5, setting.head_dim)
    tail = mx.zeros(heads.tail_size(rows), setting.dtype)

    def attended(qkv: mx.array, part: KVCache) -> mx.array:
        if id(part) not in packed:
            kv, angles = mx.stack([part.keys, part.values]), np.full((rows, 1, setting.head_dim // 2), 0.5)
            splits = default_layout(heads, kv.shape[3]).splits
            step = mx.array(step_rows(setting.depth - 1, 0, kv.shape[3], splits, angles)) * 1  # in the device's memory
            packed[id(part)] = kv, step
            mx.eval(kv, step, tail)
        kv, step = packed[id(part)]
        y, _, start = attend(qkv.reshape(rows, -1), kv, tail, step, heads, batch=rows)
        return y.reshape(-1)[start:]

    if first == "cache":
        return attended
    return None if operation.name.endswith("RoPE") else projected


def _layer(s: Setting, part: Weight) -> nn.Module:
    """A linear layer around weights that are there."""
    layer: Any = nn.QuantizedLinear(64, 64, False, GROUP, s.bits) if s.bits else nn.Linear(64, 64, bias=False)
    for name, array in zip(("weight", "scales", "biases"), part, strict=False):
        layer[name] = array
    return layer


def operations(s: Setting) -> Iterator[Operation]:
    """The operations of one step; each is made when its turn comes, so that its memory is free before the next."""
    h = _random(s, s.hidden)
    gain = mx.random.uniform(0.5, 1.5, (s.hidden,)).astype(s.dtype)

    def normed(x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, gain, EPS)

    def qkv(x: mx.array, w: Weight) -> mx.array:
        return _product(s, normed(x), w)

    def qkv_rope(x: mx.array, w: Weight) -> mx.array:
        y = qkv(x, w).reshape(s.batch, 1, -1, s.head_dim).transpose(0, 2, 1, 3)
        q, k, _ = mx.split(y, [s.heads, s.heads + s.kv_heads], axis=1)
        rotated = [mx.fast.rope(t, s.head_dim, traditional=False, base=1e4, scale=1.0, offset=s.depth) for t in (q, k)]
        return mx.depends(rotated[0], rotated[1])

    def project_add(x: mx.array, w: Weight) -> mx.array:
        return h + _product(s, x, w)

    def gate_up(x: mx.array, w: Weight) -> mx.array:
        return swiglu(*mx.split(qkv(x, w), 2, axis=-1))

    yield _on_weights(s, "norm, q k v", h, s.qkv_size, qkv)
    yield _on_weights(s, "norm, q k v, RoPE", h, s.qkv_size, qkv_rope)
    yield _attention(s)
    yield _on_weights(s, "o, add", _random(s, s.query_size), s.hidden, project_add)
    yield _on_weights(s, "norm, gate up, silu", h, 2 * s.intermediate, gate_up)
    yield _on_weights(s, "down, add", _random(s, s.intermediate), s.hidden, project_add)
    yield _on_weights(s, "norm, head", h, s.vocabulary, qkv)


def _on_weights(s: Setting, name: str, x: mx.array, out: int, mlx: Callable[[mx.array, Any], mx.array]) -> Operation:
    """An operation that reads one matrix ``[out, x's last axis]``."""

    def weight() -> Weight:
        full = mx.random.normal((out, x.shape[-1]), s.dtype) * x.shape[-1] ** -0.5
        w = mx.quantize(full, group_size=GROUP, bits=s.bits) if s.bits else (full,)
        mx.eval(w)
        return tuple(w)

    parts = [weight()]
    nbytes = sum(part.nbytes for part in parts[0])
    parts += [weight() for _ in range(s.footprint // nbytes + 1)]
    return Operation(name, x, parts, nbytes, mlx, _random(s, out).reshape(s.batch, out))


def _attention(s: Setting) -> Operation:
    """Attention of one new position to ``depth`` positions, itself included, which first goes into the cache."""
    k, v = (_random(s, s.kv_heads * s.head_dim).reshape(s.batch, s.kv_heads, 1, s.head_dim) for _ in range(2))
    past = mx.random.normal((s.batch, s.kv_heads, s.depth - 1, s.head_dim), s.dtype)

    def filled() -> KVCache:
        cache = KVCache()
        cache.update_and_fetch(past, past)
        mx.eval(cache.keys, cache.values)
        return cache

    def attend(qkv: mx.array, cache: KVCache) -> mx.array:
        q = qkv[..., : s.query_size].reshape(s.batch, s.heads, 1, s.head_dim)
        keys, values = cache.update_and_fetch(k, v)
        cache.trim(1)  # the next launch on it finds the same depth
        return scaled_dot_product_attention(q, keys, values, cache=cache, scale=s.head_dim**-0.5, mask=None)

    nbytes = 2 * s.batch * s.kv_heads * s.depth * s.head_dim * s.dtype.size
    x = _random(s, s.qkv_size)
    parts = [filled() for _ in range(s.footprint // nbytes + 2)]
    return Operation(f"cache, attend to {s.depth}", x, parts, nbytes, attend, x)


def _random(s: Setting, size: int) -> mx.array:
    x = mx.random.normal((s.batch, 1, size), s.dtype)
    mx.eval(x)
    return x


def _product(s: Setting, x: mx.array, w: Weight) -> mx.array:
    return mx.quantized_matmul(x, *w, group_size=GROUP, bits=s.bits) if s.bits else x @ w[0].T


def measure_shape(shape: str, watch: Stopwatch, bandwidth: float, args: argparse.Namespace) -> None:
    """All rows of one shape."""
    config = read_shape(shape)
    heads = config["num_attention_heads"]
    setting = Setting(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        dtype=getattr(mx, args.dtype),
        bits=args.bits,
        batch=args.batch,
        depth=args.depth,
        footprint=int(args.footprint * 2**20),
    )
    for operation in operations(setting):
        row: dict[str, Any] = {"shape": shape_name(shape), "operation": operation.name, "dtype": args.dtype}
        row |= {"bits": args.bits or None, "group_size": GROUP if args.bits else None}
        row |= {"batch": args.batch, "depth": args.depth, "bytes": operation.nbytes, "bandwidth": bandwidth}
        row["floor_us"] = round(1e6 * operation.nbytes / bandwidth, 3)
        for side, kernel in (("mlx", operation.mlx), ("ours", ours(operation, setting))):
            row[side] = kernel and _timed(watch, operation, kernel)
        save_row(args.out or results_folder(), "gpu-kernels", row, KEYS)
        print({key: row[key] for key in ("shape", "operation", "floor_us", "mlx", "ours")}, flush=True)


def _timed(watch: Stopwatch, operation: Operation, kernel: Callable[[mx.array, Any], mx.array]) -> dict[str, Any]:
    """The launches' cost as a row has it, or the error."""
    count = max(FEWEST, len(operation.parts))
    parts = operation.parts * math.ceil(count / len(operation.parts))
    return timed(watch, lambda x, i: kernel(x, parts[i]), operation.x, count) | {"launches": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", nargs="+", default=["SmolLM2-135M", "Llama-3.2-1B"], help="names in models/shapes, or JSON files")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    add("--bits", type=int, choices=(0, 4, 8), default=4, help="0: not quantised (default 4, groups of 64)")
    add("--batch", type=int, default=1, help="rows of activations (default 1)")
    add("--depth", type=int, default=1024, help="positions that attention reads (default 1024)")
    add("--footprint", type=float, default=128, help="MB of weights that the launches go through (default 128)")
    add("--gigabytes", type=float, default=4, help="memory to measure the bandwidth with (default 4)")
    add("--out", type=Path, help="folder for gpu-kernels.json (default bench/results/<device>)")
    add("--quick", action="store_true", help="a tiny shape, seconds on a CPU: whether it runs, not how fast")
    args = parser.parse_args()
    if args.quick:
        args = settled(args, dtype="float32", bits=0, depth=20, footprint=0.01, gigabytes=0.001)
    watch = Stopwatch(args.gigabytes)
    found = watch.bandwidth()
    print(f"bandwidth: {found['read'] / 1e9:.0f} GB/s read, {found['copy'] / 1e9:.0f} GB/s copied", flush=True)
    for shape in args.shape:
        try:
            measure_shape(shape, watch, max(found.values()), args)
        except Exception as error:  # the next shape goes on
            print(f"{shape}: {described(error)}", flush=True)


if __name__ == "__main__":
    main()
