"""Checkpoints of random weights in a public model's shape, in stock mlx-lm's layout."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, quantize_model

SHAPES = Path(__file__).parent.parent / "models" / "shapes"


def write_random(shape: str, folder: Path, *, dtype: mx.Dtype, bits: int | None = None, group_size: int = 64) -> Path:
    """A folder with config.json and model.safetensors for ``models/shapes/<shape>.json``; gains are not 1."""
    config = json.loads((SHAPES / f"{shape}.json").read_text(encoding="utf-8"))
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    mx.random.seed(0)
    gains = [(k, mx.random.uniform(0.5, 1.5, v.shape)) for k, v in tree_flatten(model.parameters()) if "norm" in k]
    model.load_weights(gains, strict=False)
    model.set_dtype(dtype)
    if bits:
        model, config = quantize_model(model, config, group_size, bits)
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
