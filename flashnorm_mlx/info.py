"""What a checkpoint is and what becomes of each of its norms, from its headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .architectures.base import Decoder, named_arrays
from .checkpoint import DTYPES, Checkpoint, open_checkpoint
from .kernels.choice import measured
from .kernels.dialect import backend
from .loader import check_tensors, compute_dtype, configured
from .plan import MARKED, TIED, Step


@dataclass(frozen=True)
class NormFate:
    """All norms of one kind that fare alike: how many, who consumes them, and what becomes of gain and scale."""

    norm: str
    count: int
    into: tuple[str, ...]
    gain: str
    scale: str
    #: Of a LayerNorm; empty for others.
    bias: str
    mean: str


@dataclass(frozen=True)
class Info:
    """The facts about a checkpoint that ``flashnorm info`` shows."""

    path: Path
    model_type: str
    layers: int
    parameters: int
    weights: str
    file_bytes: int
    #: Weight bytes that one decoded token reads: neither tables that a row is looked up in nor idle experts.
    bytes_per_token: int
    #: Cache bytes that each position of the context takes, in the compute dtype.
    cache_bytes_per_position: int
    compute_dtype: str
    device: str
    norms: tuple[NormFate, ...]
    #: What fused decoding uses for the model's operations, as measured on this device.
    kernels: tuple[str, ...]


def inspect(path: str | Path, dtype: str | None = None) -> Info:
    """Read a folder's config and headers.

    Raises:
        FlashNormError: as :func:`flashnorm_mlx.load` would.
    """
    checkpoint = open_checkpoint(path)
    model = configured(checkpoint, {})
    check_tensors(checkpoint, model)
    args, tensors = model.args, model.headers(checkpoint.tensors)
    tables = model.looked_up
    read = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in tables}
    computing = compute_dtype(dtype) or _file_dtype(checkpoint)
    return Info(
        path=checkpoint.path,
        model_type=args.model_type,
        layers=args.num_hidden_layers,
        parameters=sum(a.size for _, a in named_arrays(model)),
        weights=describe_weights(checkpoint),
        file_bytes=checkpoint.nbytes,
        bytes_per_token=round(sum(t.nbytes * model.read_share(name) for name, t in read.items())),
        cache_bytes_per_position=args.cache_width_of_all * computing.size,
        compute_dtype=dtype_name(computing),
        device=device_name(),
        norms=_fates(model.plan(tensors).steps),
        kernels=_kernels(model),
    )


def describe_weights(checkpoint: Checkpoint) -> str:
    """``4-bit (group 64)``, or the dtype that most of the weights have."""
    quantization: Any = checkpoint.config.get("quantization") or checkpoint.config.get("quantization_config")
    if isinstance(quantization, dict):
        bits, group = quantization.get("bits"), quantization.get("group_size")
        if bits and group:
            return f"{bits}-bit (group {group})"
        return str(quantization.get("quant_method", "quantised"))
    return dtype_name(_file_dtype(checkpoint))


def _file_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    held: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in ("F16", "BF16", "F32"):
            held[tensor.dtype] += tensor.nbytes
    return (DTYPES[held.most_common(1)[0][0]][1] if held else None) or mx.float32


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def device_name() -> str:
    """``gpu (Apple M2)``, ``gpu (NVIDIA H200)`` or ``cpu``."""
    device = mx.default_device()
    if device == mx.cpu:
        return "cpu"
    name = mx.device_info().get("device_name")
    return f"gpu ({name})" if name else "gpu"


def _kernels(model: Decoder) -> tuple[str, ...]:
    """A line for each operation that was measured, or the one line that there is to say instead."""
    which = backend()
    if which is None:
        return ("plain MLX operations: fused kernels need a GPU (Metal or CUDA)",)
    model.pack()
    shapes = {a.shape for name, a in named_arrays(model) if name.endswith("weight") and a.ndim == 2}
    lines = []
    for operation, known in measured().items():
        if any(operation.startswith(f"project {rows} x {columns},") for rows, columns in shapes):
            times = ", ".join(f"{form} {us:g} µs" for form, us in known["us"].items())
            lines.append(f"{operation}: {known['form']} ({times})")
    head = f"{which}: a kernel applies a scale behind its product, in the same launch, q's and k's too"
    return (head, *(lines or ["where there are kernels, they are measured when the model is first loaded"]))


def _fates(steps: tuple[Step, ...]) -> tuple[NormFate, ...]:
    groups: Counter[tuple] = Counter()
    for step in steps:
        fold, fate = step.fold, f"kept: {step.kept}" if step.into else step.kept
        gain = "folded into the weights" if not step.kept else MARKED if step.kept == MARKED else fate
        bias = "folded into the biases" if not step.kept else fate
        mean = "removed: every writer of the residual is centred" if not step.kept else fate
        if step.into and "weight" not in fold.parameters:
            gain = "none"
        short = tuple(c.rpartition(".")[2] for c in step.fold.into)
        if len(set(short)) < len(short):
            short = tuple(".".join(c.split(".")[-2:]) for c in step.fold.into)
        if step.kept == TIED:
            short = ("lm_head, tied to embed_tokens",)
        groups[
            fold.norm,
            short,
            gain,
            fold.scale or "computed with the norm",
            bias if "bias" in fold.parameters else "",
            mean if fold.centres else "",
        ] += 1
    return tuple(NormFate(fate[0], n, *fate[1:]) for fate, n in groups.items())
