"""Whole decode steps of Gemma 4: layers with a window and without, shared keys and values, inputs of each layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import relative_error
from decode_runs import SHORT, TOLERANCE, Action, checkpoint, error, fused, rounding, run, tokens
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as load_stock
from test_gemma4 import MOE

from flashnorm_mlx.architectures.gemma4_config import GLOBAL, LOCAL
from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.engine.decode import PATIENCE, DecodeStep
from flashnorm_mlx.kernels import dialect
from flashnorm_mlx.kernels.attend import Heads, default_layout, step_rows
from flashnorm_mlx.kernels.packed import Uncovered
from flashnorm_mlx.layers import fused as fused_layers
from flashnorm_mlx.loader import load_model
from flashnorm_mlx.rotating import RotatingKVCache

FAMILY = "gemma4_text"
KINDS = [LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL]
SIZES: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": KINDS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "global_head_dim": 128,
    "hidden_size_per_layer_input": 32,
}
#: Gemma 4's own sizes of heads, and one key head as its smallest has it.
LARGE = {"head_dim": 256, "global_head_dim": 512, "num_key_value_heads": 1, "attention_k_eq_v": False}
PLAIN = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
BARE = {"hidden_size_per_layer_input": 0}
OWN_VALUES = {"attention_k_eq_v": False, "num_global_key_value_heads": None}
#: Of a window of 6 tokens; that of 20 is not full before the trim.
ONWARD: list[Action] = [*SHORT, *[("step", 3)] * (PATIENCE + 2), ("step", 1)]
BACK: list[Action] = [*SHORT, ("trim", 2), *[("step", 1)] * 2, *[("step", 3)] * (PATIENCE + 1), ("step", 1)]
LONG: list[Action] = [("prompt", 9), *[("step", 1)] * 36, *ONWARD[5:]]

CASES: list[tuple[dict[str, Any], str, int | None, list[Action]]] = [
    ({}, "flashnorm", None, LONG),
    ({}, "flashnorm", 4, ONWARD),
    ({}, "none", 8, SHORT),
    ({}, "baseline", None, SHORT),
    ({"sliding_window": 20}, "flashnorm", None, BACK),
    ({"num_kv_shared_layers": 3}, "flashnorm", 4, ONWARD),
    ({"num_kv_shared_layers": 0, **OWN_VALUES}, "flashnorm", None, ONWARD),
    ({"tie_word_embeddings": False, **OWN_VALUES}, "none", None, SHORT),
    (LARGE, "flashnorm", None, ONWARD),
    (BARE, "flashnorm", None, ONWARD),
    (BARE, "baseline", 4, SHORT),
    (PLAIN, "flashnorm", 4, ONWARD),
    ({**PLAIN, **OWN_VALUES}, "none", None, SHORT),
]


def write(folder: Path, bits: int | None = None, **options: Any) -> Path:
    return checkpoint(folder / "m", FAMILY, bits, **{**SIZES, **options})


@pytest.mark.parametrize(("options", "arm", "bits", "plan"), CASES)
def test_steps_are_the_models_own_and_stock_mlx_lms(
    options: dict[str, Any], arm: str, bits: int | None, plan: list[Action], tmp_path: Path, device: str, passes: list
) -> None:
    path = write(tmp_path, bits, **options)
    model = fused(path, arm=arm)
    passes.clear()
    got = run(model, plan)
    assert passes.count((1, 1)) == plan.count(("step", 1))
    assert plan is SHORT or passes.count((1, 3)) >= 1
    assert error(got, run(load_model(path, arm=arm, kernels="reference"), plan)) <= TOLERANCE
    if arm != "none":
        assert error(got, run(load_stock(path)[0], plan)) <= TOLERANCE


def test_a_batch(tmp_path: Path, device: str, passes: list) -> None:
    path = write(tmp_path, layer_types=[GLOBAL] * 5)
    plan = [("prompt", 9), *[("step", 1)] * (PATIENCE + 2), *[("step", 2)] * (PATIENCE + 2)]
    model = fused(path)
    passes.clear()
    got = run(model, plan, batch=2)
    assert passes.count((2, 1)) >= 2 and passes.count((2, 2)) >= 2
    assert error(got, run(load_stock(path)[0], plan, batch=2)) <= TOLERANCE


def test_long_sequences(tmp_path: Path, device: str, passes: list) -> None:
    """Whose attention is split, also where the layer's keys are another's."""
    path, plan = write(tmp_path), [("prompt", 1030), *[("step", 1)] * 3]
    model = fused(path)
    passes.clear()
    got = run(model, plan)
    assert passes == [(1, 1)] * 3
    assert error(got[1:], run(load_stock(path)[0], plan)[1:]) <= rounding(path, plan, device)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, PLAIN])
def test_low_precision_is_no_worse_than_plain(options: dict[str, Any], dtype: str, tmp_path: Path, device: str) -> None:
    path, plan = write(tmp_path, **options), [("prompt", 9), *[("step", 1)] * 6]
    exact = run(load_model(path, dtype="float32", kernels="reference"), plan)

    def distance(outputs: list[mx.array]) -> float:
        assert all(str(a.dtype).endswith(dtype) for a in outputs)
        squares = [mx.mean(mx.square(a.astype(mx.float32) - b)) for a, b in zip(outputs[1:], exact[1:], strict=True)]
        return sum(squares).item() ** 0.5  # type: ignore[union-attr]

    plain = distance(run(load_model(path, dtype=dtype, kernels="reference"), plan))
    assert distance(run(fused(path, dtype=dtype), plan)) <= 1.2 * plain


@pytest.mark.parametrize(("options", "launches"), [({}, 7), (BARE, 5), (PLAIN, 5)])
def test_launches_a_layer(
    options: dict[str, Any], launches: int, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fused(write(tmp_path, 4, **options))
    made: list[str] = []
    original = dialect.launch
    monkeypatch.setattr(dialect, "launch", lambda name, *a, **k: made.append(name) or original(name, *a, **k))
    step = model._step
    caches = step.blank(1, KVCache.step)
    tails = [
        mx.zeros(b.heads.output_size(1, 1, default_layout(b.heads, c.capacity), mx.float32))
        for b, c in zip(step.cached, caches, strict=True)
    ]
    turned = [(caches[i].capacity, step.cached[i].rotation.dims // 2) for i in step.groups]
    rows = [mx.array(step_rows(0, 0, capacity, 1, np.zeros((1, 1, pairs)))) for capacity, pairs in turned]
    assert all(p.prepare is None for block in step.blocks for p in block.projections)
    step.run([mx.zeros((1, 1), mx.int32)], rows, [c.buffer for c in caches], tails)
    block = ["project", "attend", "project", "project", "project", "project", "project"]
    assert made == ["embed", *block[:launches] * 5, "project"]


def test_caches_are_those_of_layers_with_keys(tmp_path: Path, device: str, passes: list) -> None:
    """Stock caches become ours, and an adapter's layer puts an end to the kernels."""
    path = write(tmp_path)
    model, stock = fused(path), load_stock(path)[0]
    assert [type(c) for c in model.make_cache()] == [RotatingKVCache, KVCache, RotatingKVCache]
    cache, want = make_prompt_cache(stock), make_prompt_cache(stock)
    stock(tokens(9), cache=want)
    model(tokens(9), cache=cache)
    passes.clear()
    assert relative_error(model(tokens(1), cache=cache), stock(tokens(1), cache=want)) <= TOLERANCE
    assert passes == [(1, 1)] and [type(c) for c in cache] == [type(c) for c in model.make_cache()]
    assert model(tokens(1)).shape == (1, 1, 331) and passes == [(1, 1)]
    assert model._step.reads == [0, 1, 2, 1, 2]
    layer = model.layers[0]
    layer.per_layer_projection.weight = 2 * layer.per_layer_projection.weight
    model(tokens(9), cache=make_prompt_cache(model))
    assert model.kernels == "reference"


def test_experts_are_uncovered(tmp_path: Path) -> None:
    with pytest.raises(Uncovered, match="routed experts"):
        load_model(write(tmp_path, **MOE), kernels="reference").fuse()


# ---- negative controls -------------------------------------------------------------------------------------------


def without_factors(step: DecodeStep) -> None:
    for projection in (block.qkv for block in step.blocks):
        projection.packed = replace(projection.packed, factor=False)


def without_the_norm_of_values(step: DecodeStep) -> None:
    for block in step.blocks:
        block.heads = replace(block.heads, v_norm=False)


def with_another_cache(step: DecodeStep) -> None:
    step.reads[4] = 0


def with_another_input(step: DecodeStep) -> None:
    model = step.model()
    assert model is not None
    inputs = model.layer_inputs
    model.layer_inputs = lambda *a: inputs(*a)[::-1]


def without_gains(step: DecodeStep) -> None:
    for block in step.blocks:
        block.gains = mx.ones_like(block.gains)


CONTROLS = [
    *[without_factors, without_the_norm_of_values],
    *[with_another_cache, with_another_input, without_gains],
]


@pytest.mark.parametrize("change", CONTROLS)
def test_control_what_is_left_out_is_seen(change: Any, tmp_path: Path, device: str) -> None:
    path = write(tmp_path)
    model = fused(path)
    change(model._step)
    model._step.compiled = mx.compile(model._step.run)  # what was traced before knows nothing of the change
    assert error(run(model, SHORT), run(load_stock(path)[0], SHORT)) > 1e-3


def test_control_the_tail_before_the_step(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layer that is shared has just written is not there yet."""
    original, before = fused_layers.attend, dict[int, mx.array]()

    def attend(qkv: mx.array, kv: mx.array, tail: mx.array, step: mx.array, h: Heads, **options: Any) -> Any:
        old = before[id(kv)] if h.shares else before.setdefault(id(kv), tail)
        a, new, start = original(qkv, kv, old, step, h, **options)
        return a, tail if h.shares else new, start

    path = write(tmp_path)
    model = fused(path)
    monkeypatch.setattr(fused_layers, "attend", attend)
    model._step.compiled = model._step.run
    plan = SHORT[:2]
    assert error(run(model, plan), run(load_stock(path)[0], plan)) > 1e-3
