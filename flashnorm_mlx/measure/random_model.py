"""Checkpoints of random weights in a public model's shape, in stock mlx-lm's layout."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, quantize_model

from .. import architectures, fold
from ..architectures.base import named_arrays
from ..errors import FlashNormError
from .shapes import read_shape

# mlx-lm's olmo exits where this is missing, and uses nothing of it
if "hf_olmo" not in sys.modules and importlib.util.find_spec("hf_olmo") is None:
    sys.modules["hf_olmo"] = ModuleType("hf_olmo")


def stock_model(config: dict[str, Any]) -> nn.Module:
    """Stock mlx-lm's model, its weights random and not computed yet.

    Raises:
        FlashNormError: for a config that is wrong, or of a model that mlx-lm doesn't have.
    """
    if config.get("model_type") in architectures.supported():  # whose configs are checked key by key
        architectures.find(config["model_type"]).Config.from_dict(config)
    try:
        model_class, args_class = _get_classes(config)
        model = model_class(args_class.from_dict(config))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise FlashNormError(f"mlx-lm can't make a model of this config: {type(error).__name__}: {error}") from None
    if config.get("tie_word_embeddings") and hasattr(model, "lm_head"):
        model.sanitize({})  # some tie the head only when they see no tensor for it
    return model


def parameters(shape: str) -> int:
    """How many parameters a shape's model has."""
    return sum(value.size for _, value in named_arrays(stock_model(read_shape(shape))))


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
    shapes = {name: value.shape for name, value in named_arrays(model)}
    gains = {name: mx.random.uniform(0.5, 1.5, shape) for name, shape in shapes.items() if is_gain(name, shape)}
    if converted:
        for name, plus_one in folded_gains(config, list(shapes)):
            gains[name] = fold.identity_gain(gains[name], plus_one=plus_one)
    # mlx-lm's routers start with zeros, which would send every token to the same experts
    routers = {n: mx.random.normal(s, scale=s[-1] ** -0.5) for n, s in shapes.items() if n.endswith(".gate.weight")}
    model.load_weights([*gains.items(), *routers.items()], strict=False)
    model.set_dtype(dtype)
    if bits:
        model, config = quantize_model(model, config, group_size, bits)
    folder.mkdir(parents=True)
    weights = dict(named_arrays(model))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def is_gain(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a norm's gain: the only weights that are no matrices."""
    return name.endswith(".weight") and len(shape) == 1


def folded_gains(config: dict[str, Any], names: list[str]) -> list[tuple[str, bool]]:
    """The gains that a converted checkpoint with these tensors has no more, and whether the gain is 1 + w.

    None for a family that we don't run, or whose LayerNorms ``convert`` leaves as they are.
    """
    if config["model_type"] not in architectures.supported():
        return []
    family = architectures.find(config["model_type"])
    plan = family.Model(family.Config.from_dict(config)).plan(names)
    return sorted(
        {(f"{step.norm}.weight", step.fold.plus_one) for step in plan.gain_of.values() if not step.fold.centres}
    )


def scratch_root(needed: int) -> str:
    """Where ``needed`` bytes of checkpoint are quickest to write and read: memory (/dev/shm), or the disk."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1.2 * needed
    return str(memory) if roomy else tempfile.gettempdir()
