"""Files that appear whole or not at all: checkpoints, the finished model, its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx


def write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    part = path.with_name("part-" + path.name)
    mx.save_safetensors(str(part), arrays, metadata)
    part.replace(path)


def save_checkpoint(path: Path, arrays: dict[str, mx.array], progress: dict[str, Any]) -> None:
    """Everything that training needs to go on exactly where it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays, {"progress": json.dumps(progress)})


def save_model(target: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """The weights in bf16 with mlx-lm's names, their index, and both configs."""
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.astype(mx.bfloat16) for name, weight in sorted(weights.items())}
    write_arrays(target / "model.safetensors", weights, {"format": "mlx"})
    size = sum(weight.nbytes for weight in weights.values())
    count = sum(weight.size for weight in weights.values())
    index = {"metadata": {"total_size": size, "total_parameters": count}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    write_json(target / "model.safetensors.index.json", index)
    write_json(target / "config.json", config)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(target / "generation_config.json", {**generation, "do_sample": False})
