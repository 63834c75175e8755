"""Checkpoints of random weights in a public model's shape: the package's."""

from __future__ import annotations

from flashnorm_mlx.measure.random_model import folded_gains, parameters, scratch_root, stock_model, write_random
from flashnorm_mlx.measure.shapes import read_shape, shape_name, shapes_folder

SHAPES = shapes_folder()

__all__ = [
    "SHAPES",
    "folded_gains",
    "parameters",
    "read_shape",
    "scratch_root",
    "shape_name",
    "stock_model",
    "write_random",
]
