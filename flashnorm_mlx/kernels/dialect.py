"""One kernel text, two backends: ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``.

The bodies in ``source/`` are plain Metal. A prelude of a few lines gives CUDA Metal's vocabulary. CUDA's runtime
compiler reads files, so its kernels' text is a list of includes (MLX hashes a kernel's text at every launch there);
Metal's gets the files' contents.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

Template = dict[str, int | bool | mx.Dtype]

#: What a body needs in front of it.
_HEADERS = {
    "project": ("words.msl", "rows.msl", "activation.msl"),
    "embed": ("words.msl",),
    "attend": ("words.msl", "rotate.msl"),
    "join": (),
    "add_norm": ("words.msl",),
    "gate": ("words.msl", "activation.msl"),
}


def source_folder() -> Path:
    """The folder of the kernels' texts; ``FLASHNORM_KERNEL_SOURCES`` names another one, to try changes out."""
    return Path(os.environ.get("FLASHNORM_KERNEL_SOURCES") or Path(__file__).parent / "source")


def backend() -> str | None:
    """``metal`` or ``cuda`` where MLX computes on such a GPU by default, else None."""
    if mx.default_device() != mx.gpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda"


def bits_of(value: float) -> int:
    """A float32 as the int of the same bits: kernels take only whole numbers as constants."""
    return int(np.float32(value).view(np.int32))


@functools.cache
def build(
    which: str | None,
    name: str,
    operation: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    defines: tuple[tuple[str, str], ...],
    threads: int,
) -> Callable[..., Any]:
    """The kernel of one operation for one backend and ``threads`` a threadgroup, compiled when first launched."""
    folder = source_folder()
    macros = "".join(f"#define {key} {value}\n" for key, value in defines)
    options: dict[str, Any] = {"name": name, "input_names": list(inputs), "output_names": list(outputs)}
    kernel: Any
    if which == "cuda":
        header = f"#define THREADS {threads}\n"  # see the prelude
        header += "".join(f'#include "{folder / file}"\n' for file in ("prelude.cuda.h", *_HEADERS[operation]))
        kernel = mx.fast.cuda_kernel(**options, header=header + macros, source=f'#include "{folder / operation}.msl"\n')
        return kernel
    header = "".join(text(folder / file) for file in ("prelude.metal.h", *_HEADERS[operation]))
    kernel = mx.fast.metal_kernel(**options, header=header + macros, source=text(folder / f"{operation}.msl"))
    return kernel


def text(file: Path) -> str:
    """A kernel file without its comments, which MLX would carry along at every launch."""
    lines = [re.sub(r"\s*//.*", "", line) for line in file.read_text(encoding="utf-8").splitlines()]
    return "".join(f"{line}\n" for line in lines if line.strip())


def launch(
    operation: str,
    inputs: dict[str, mx.array],
    template: Template,
    *,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shape: Sequence[int],
    dtype: mx.Dtype,
    outputs: tuple[str, ...] = ("y",),
    defines: dict[str, str] | None = None,
) -> list[mx.array]:
    """Launch a kernel. ``grid`` counts threads, and must be a multiple of ``threadgroup``.

    Returns:
        The outputs, all of one shape and dtype.
    """
    names, macros = tuple(inputs), tuple((defines or {}).items())
    name = "fn_" + "_".join((operation, *names, *outputs[1:]))
    kernel = build(backend(), name, operation, names, outputs, macros, math.prod(threadgroup))
    launched: list[mx.array] = kernel(
        inputs=list(inputs.values()),
        template=list(template.items()),
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=[tuple(shape)] * len(outputs),
        output_dtypes=[dtype] * len(outputs),
    )
    return launched
