"""Random checkpoints: every family's is one that stock mlx-lm and all our arms load, and compute the same from."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import relative_error

from flashnorm_mlx import architectures
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.measure.arms import load_arm
from flashnorm_mlx.measure.random_model import folded_gains, is_gain, write_random
from flashnorm_mlx.measure.shapes import read_shape, shape_names

FAMILIES = sorted({read_shape(name)["model_type"] for name in shape_names()})


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_arms_load_it(family: str, converted: bool, tmp_path: Path) -> None:
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(architectures.find(family).TINY))
    folder = write_random(str(shape), tmp_path / "m", dtype=mx.float32, bits=4, group_size=32, converted=converted)
    ids = mx.array([[7]])
    logits = {name: load_arm(name, folder, "float32")(ids) for name in ("mlx-lm", "baseline", "flashnorm", "none")}
    for name in ("baseline", "flashnorm"):
        assert relative_error(logits[name], logits["mlx-lm"]) < 1e-5, name
    assert relative_error(logits["none"], logits["mlx-lm"]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_gains_are_not_one_unless_converted(family: str, tmp_path: Path) -> None:
    """Then those that folding takes away are, and no others."""
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(architectures.find(family).TINY))
    found = {}
    for converted in (False, True):
        folder = tmp_path / str(converted)
        write_random(str(shape), folder, dtype=mx.float32, converted=converted)
        weights = mx.load(str(folder / "model.safetensors"))
        found[converted] = {k: v for k, v in weights.items() if is_gain(k, v.shape)}
    names = list(open_checkpoint(tmp_path / "True").tensors)
    identities = dict(folded_gains(json.loads(shape.read_text()), names))
    assert bool(found[True]) == (family != "olmo")  # whose LayerNorms have none
    for name, gain in found[True].items():
        identity = 0.0 if identities.get(name) else 1.0
        assert mx.all(gain == identity).item() == (name in identities), name
        assert mx.std(found[False][name]).item() > 0.1, name
