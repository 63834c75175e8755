"""Checkpoints of random weights in a public model's shape, in stock mlx-lm's layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, quantize_model

from flashnorm_mlx import architectures, fold

SHAPES = Path(__file__).parent.parent / "models" / "shapes"


def read_shape(shape: str) -> dict[str, Any]:
    """The config of ``models/shapes/<shape>.json``; a name that ends in .json is a file anywhere."""
    file = Path(shape) if shape.endswith(".json") else SHAPES / f"{shape}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def shape_name(shape: str) -> str:
    """``SmolLM2-135M`` of a name or a file."""
    return Path(shape).name.removesuffix(".json")


def stock_model(config: dict[str, Any]) -> nn.Module:
    """Stock mlx-lm's model, its weights random and not computed yet."""
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if config["model_type"] == "gemma3_text":
        model.sanitize({})  # ties the head, which the public checkpoints leave out
    return model


def parameters(shape: str) -> int:
    """How many parameters a shape's model has."""
    return sum(value.size for _, value in tree_flatten(stock_model(read_shape(shape)).parameters()))


def write_random(
    shape: str,
    folder: Path,
    *,
    dtype: mx.Dtype,
    bits: int | None = None,
    group_size: int = 64,
    converted: bool = False,
) -> Path:
    """A folder with config.json and model.safetensors for a shape (:func:`read_shape`); gains are not 1.

    Weights are drawn and quantised on the default device, as the file is written. ``converted``: the gains that
    folding takes away are identities, as in what ``flashnorm convert`` writes. (The weights are random either way.)
    """
    config = read_shape(shape)
    mx.random.seed(0)
    model = stock_model(config)
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    gains = {name: mx.random.uniform(0.5, 1.5, shape) for name, shape in shapes.items() if "norm" in name}
    if converted:
        for name, plus_one in folded_gains(config, list(shapes)):
            gains[name] = fold.identity_gain(gains[name], plus_one=plus_one)
    model.load_weights(list(gains.items()), strict=False)
    model.set_dtype(dtype)
    if bits:
        model, config = quantize_model(model, config, group_size, bits)
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def folded_gains(config: dict[str, Any], names: list[str]) -> list[tuple[str, bool]]:
    """The gains that folding a checkpoint with these tensors takes away, and whether the gain is 1 + w.

    None for a family that we don't run.
    """
    if config["model_type"] not in architectures.supported():
        return []
    family = architectures.find(config["model_type"])
    plan = family.Model(family.Config.from_dict(config)).plan(names)
    return sorted({(f"{step.norm}.weight", step.fold.plus_one) for step in plan.gain_of.values()})


def scratch_root(needed: int) -> str:
    """Where ``needed`` bytes of checkpoint are quickest to write and read: memory (/dev/shm), or the disk."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1.2 * needed
    return str(memory) if roomy else tempfile.gettempdir()
