"""Passes by blocks that are compiled up to their attention and from it on, one for all that are alike."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import FAMILIES, our_model, relative_error, stock_with_weights, tiny_config
from layer_norms import FAMILIES as LAYER_NORMS
from layer_norms import model_of
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache
from test_models import TOLERANCE, ids_for

from flashnorm_mlx.architectures import compiled

#: The second of three layers is a global one.
PATTERN = {"sliding_window_pattern": 2}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    **{family: (family, {}, 1) for family in FAMILIES if family not in ("gemma2", "gemma3_text", "openelm")},
    "gemma2": ("gemma2", {"sliding_window": 8}, 2),
    "gemma3_text": ("gemma3_text", PATTERN, 2),
    "openelm, whose layers all differ": ("openelm", {}, 3),
    "gpt2": ("gpt2", {}, 1),
    "olmo": ("olmo", {}, 1),
    "stablelm": ("stablelm", {}, 1),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}, 1),
    "gemma4_text": ("gemma4_text", {}, 4),
    "deepseek_v2, the first layer without experts": ("deepseek_v2", {}, 2),
    "deepseek_v3": ("deepseek_v3", {}, 2),
}
PLAN = (9, 1, 7, 1, 1, 2)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the default device were one; what is asked of MLX itself is done on the CPU. One block pays."""
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.gpu)
        patch.setattr(compiled, "MANY", 1)
        yield


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled, as it is."""
    seen: list[str] = []
    for name in ("_before", "_behind"):
        original = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, lambda *a, name=name, original=original: seen.append(name) or original(*a))
    return seen


def ours(family: str, arm: str = "flashnorm", **options: Any) -> tuple[Any, dict[str, Any]]:
    if family in LAYER_NORMS:
        config, _, weights = model_of(family, **options)
    else:
        config = tiny_config(family, **options)
        _, weights = stock_with_weights(config)
    return our_model(config, weights, arm), config


def passes(model: Any, ids: mx.array, plan: tuple[int, ...] = PLAN, cache: list | None = None) -> mx.array:
    cache, outputs, at = cache or make_prompt_cache(model), [], 0
    for count in plan:
        outputs.append(model(ids[:, at : at + count], cache=cache))
        at += count
    return mx.concatenate(outputs, axis=1)


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize("name", CASES)
def test_passes_with_a_cache_are_the_whole_without_one(name: str, arm: str, traced: list[str]) -> None:
    """The latter is not compiled; that it is stock mlx-lm's is shown elsewhere."""
    family, options, forms = CASES[name]
    model, config = ours(family, arm, **options)
    ids = ids_for(config, 2, sum(PLAN))
    want = model(ids)
    assert not traced
    assert relative_error(passes(model, ids), want) <= TOLERANCE
    assert len(model._compiled.forms) == forms
    assert len(traced) == 2 * forms * len(set(PLAN))


def test_a_shape_is_compiled_once(traced: list[str]) -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    for plan, times in (((5,), 2), ((5, 5), 0), ((4,), 2), ((5, 4, 1), 2), ((1, 4, 5), 0)):
        traced.clear()
        passes(model, ids, plan)
        assert len(traced) == times


def test_few_blocks_are_compiled_for_what_comes_again(monkeypatch: pytest.MonkeyPatch, traced: list[str]) -> None:
    """Here: of the three layers, two are alike and the global one is alone."""
    monkeypatch.setattr(compiled, "MANY", 2)
    model, config = ours("gemma3_text", num_hidden_layers=3, **PATTERN)
    ids = ids_for(config, 1, 12)
    want = model(ids)
    for plan, times in (((5, 7), 2), ((7, 5), 2), ((5, 7), 0)):
        traced.clear()
        assert relative_error(passes(model, ids, plan), want) <= TOLERANCE
        assert len(traced) == 2 * times


def test_no_more_shapes_are_kept_than_so_many(monkeypatch: pytest.MonkeyPatch, traced: list[str]) -> None:
    monkeypatch.setattr(compiled, "SHAPES", 2)
    model, config = ours("gemma3_text", **PATTERN)
    ids = ids_for(config, 1, 12)
    want = model(ids)
    for plan, times in (((5, 7), 2), ((7, 5), 0), ((12,), 1), ((7, 5), 2)):
        traced.clear()
        assert relative_error(passes(model, ids, plan), want) <= TOLERANCE
        assert len(traced) == times * 2 * 2


def test_rows_that_start_elsewhere() -> None:
    model, config = ours("ministral3")
    ids = ids_for(config, 2, 12)
    shorter = mx.concatenate([mx.zeros((1, 4), mx.int32), ids[1:, :8].astype(mx.int32)], axis=1)
    got = passes(model, mx.concatenate([ids[:1], shorter]), (6, 5, 1), [BatchKVCache([0, 4]) for _ in model.layers])
    assert relative_error(got[:1], model(ids[:1])) <= TOLERANCE
    assert relative_error(got[1:, 4:], model(ids[1:, :8])) <= TOLERANCE


@pytest.mark.parametrize("what", ["weights", "layer", "adapter"])
def test_what_was_exchanged_is_seen_by_the_next_prompt(what: str) -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    before = passes(model, ids, (6, 6))
    attention = model.layers[1].self_attn
    if what == "weights":
        attention.o_proj.weight = attention.o_proj.weight * 2.0
    elif what == "layer":
        attention.o_proj = nn.Linear(attention.o_proj.weight.shape[1], attention.o_proj.weight.shape[0], bias=False)
    else:
        from mlx_lm.tuner.lora import LoRALinear

        attention.o_proj = LoRALinear.from_base(attention.o_proj, r=4)
        attention.o_proj.lora_b = mx.random.normal(attention.o_proj.lora_b.shape, key=mx.random.key(1))
    got = passes(model, ids, (6, 6))
    assert relative_error(got, model(ids)) <= TOLERANCE
    assert relative_error(got, before) > 1e-2


def test_layers_that_differ_in_a_number_are_not_alike() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    model.layers[1].input_layernorm.eps = 0.3
    got = passes(model, ids, (6, 6))
    assert relative_error(got, model(ids)) <= TOLERANCE
    assert len(model._compiled.forms) == 2


def test_nothing_compiled_keeps_a_model_in_memory() -> None:
    model, config = ours("llama")
    mx.eval(passes(model, ids_for(config, 1, 12), (6, 6)))
    weight = weakref.ref(model.layers[0].mlp)
    del model
    gc.collect()
    assert weight() is None


# ---- negative controls -------------------------------------------------------------------------------------------


def test_control_another_layers_arrays() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    passes(model, ids, (6,))
    first, second, *_ = model._compiled.blocks
    first.arrays, second.arrays = second.arrays, first.arrays
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2


def test_control_numbers_that_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_attributes", lambda module: [])
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    model.layers[1].input_layernorm.eps = 0.3
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2


def test_control_the_positions_that_were_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashnorm_mlx.layers.rope import Positions

    monkeypatch.setattr(Positions, "with_arrays", lambda self, arrays: Positions(self.rotation, 0, self.length))
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2
