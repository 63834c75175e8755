"""Checkpoints of the families with latent attention in Hugging Face's layout, which stock mlx-lm rearranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from checkpoints import write_checkpoint


def hugging_face(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """mlx-lm's layout as it was before: experts one by one, and kv_b_proj in one piece."""
    out = {}
    for name, value in weights.items():
        if ".switch_mlp." in name:
            out |= {name.replace(".switch_mlp.", f".experts.{e}."): value[e] for e in range(value.shape[0])}
        elif name.endswith(".embed_q.weight"):
            v = weights[name.replace("embed_q", "unembed_out")]
            whole = mx.concatenate([value.swapaxes(1, 2), v], axis=1).flatten(0, 1)
            out[name.replace("embed_q", "kv_b_proj")] = whole
        elif not name.endswith(".unembed_out.weight"):
            out[name] = value
    return out


def with_tiny_residuals(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Residuals of RMS 1e-3 and below, where ε counts."""
    small = ("embed_tokens", "o_proj", "down_proj")
    return {k: v * 0.02 if any(s in k for s in small) else v for k, v in weights.items()}


def write(folder: Path, family: str, layout: str, *, tokenizer: bool = False, **overrides: Any) -> Path:
    """A folder with a random checkpoint in the layout ``mlx-lm`` or ``Hugging Face``."""
    path = write_checkpoint(folder, family, tokenizer=tokenizer, **overrides)
    if layout == "Hugging Face":
        rewrite(path, hugging_face)
    return path


def rewrite(path: Path, change: Any) -> None:
    """Replace a checkpoint's tensors by ``change(tensors)``."""
    file = str(path / "model.safetensors")
    weights = change(dict(mx.load(file).items()))  # type: ignore[union-attr]
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})
