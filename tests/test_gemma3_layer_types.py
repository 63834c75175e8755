"""Gemma 3 as transformers ≥ 5 writes it: ``layer_types``, and ``rope_parameters`` of each type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, relative_error, stock_with_weights, tiny_config, write_checkpoint
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx import FlashNormError, convert
from flashnorm_mlx.architectures.gemma3_text import Config
from flashnorm_mlx.loader import load_model

LOCAL, GLOBAL = "sliding_attention", "full_attention"
ROPE = {
    GLOBAL: {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
    LOCAL: {"rope_theta": 7e3, "rope_type": "default"},
}
NEW: dict[str, Any] = {
    "rope_theta": ...,
    "rope_local_base_freq": ...,
    "sliding_window_pattern": ...,
    "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL],
    "rope_parameters": ROPE,
}
OLD: dict[str, Any] = {
    "rope_theta": 5e5,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_local_base_freq": 7e3,
    "sliding_window_pattern": 3,
}


def test_both_ways_of_writing_are_one_model(tmp_path: Path) -> None:
    """The conversion has the old keys, too: stock mlx-lm reads no others."""
    stock, _ = stock_with_weights(tiny_config("gemma3_text", **OLD))
    path = write_checkpoint(tmp_path / "m", "gemma3_text")
    edit_config(path, **NEW)
    ids = mx.arange(2, 22)[None]
    want = stock(ids)
    assert relative_error(load_model(path)(ids), want) <= 5e-6
    convert(path, tmp_path / "folded", quantize=False)
    assert relative_error(load_model(tmp_path / "folded")(ids), want) <= 5e-6
    assert relative_error(load_stock(tmp_path / "folded")[0](ids), want) <= 5e-6
    edit_config(path, rope_parameters={**ROPE, LOCAL: {"rope_theta": 9e5}})
    assert relative_error(load_model(path)(ids), want) > 1e-3


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [([LOCAL] * 4, 5), ([GLOBAL] * 4, 1), ([LOCAL, GLOBAL, LOCAL, GLOBAL], 2)],
)
def test_the_pattern_is_read_off_the_layers(kinds: list[str], pattern: int) -> None:
    raw = {k: v for k, v in (tiny_config("gemma3_text") | NEW | {"layer_types": kinds}).items() if v is not ...}
    assert Config.from_dict(raw).sliding_window_pattern == pattern
    del raw["layer_types"]
    assert Config.from_dict(raw | {"_sliding_window_pattern": 2}).sliding_window_pattern == 2
    assert Config.from_dict(raw).sliding_window_pattern == 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL]}, "layer_types must be full_attention .* a multiple of 2,"),
        ({"layer_types": [LOCAL, LOCAL, GLOBAL]}, "layer_types must be full_attention"),
        ({"layer_types": []}, "layer_types must be full_attention"),
        ({"layer_types": [[1], None, GLOBAL, LOCAL]}, "layer_types must be full_attention"),
        ({"layer_types": "full_attention"}, "layer_types must be a list"),
        ({"sliding_window_pattern": 2}, "layer_types must be full_attention"),
        ({"rope_parameters": {GLOBAL: ROPE[GLOBAL]}}, "rope_parameters: sliding_attention is missing"),
        ({"rope_parameters": {**ROPE, GLOBAL: 3}}, "rope_parameters: full_attention is missing, or is no object"),
        ({"rope_parameters": {**ROPE, LOCAL: ROPE[GLOBAL]}}, "sliding_attention is of type 'linear'"),
        ({"rope_local_base_freq": 5.0}, "rope_local_base_freq is not the rope_theta of sliding_attention"),
        ({"rope_local_base_freq": [5.0]}, "rope_local_base_freq"),
        ({"rope_theta": 5.0}, "rope_theta is 5.0, and 500000.0 in rope_parameters"),
    ],
)
def test_contradictions_are_one_line(changes: dict[str, Any], says: str) -> None:
    raw = {k: v for k, v in (tiny_config("gemma3_text") | NEW | changes).items() if v is not ...}
    with pytest.raises(FlashNormError, match=says) as failure:
        Config.from_dict(json.loads(json.dumps(raw)))
    assert "\n" not in str(failure.value)
