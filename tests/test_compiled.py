"""Passes by blocks that are compiled up to their attention and from it on, one for all that are alike."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import FAMILIES, relative_error
from compiled_runs import PLAN, on_a_gpu, ours, passes
from mlx.utils import tree_flatten
from mlx_lm.models.cache import BatchKVCache
from test_models import TOLERANCE, ids_for

from flashnorm_mlx.architectures.block import Names
from flashnorm_mlx.engine import compiled
from flashnorm_mlx.layers.rope import Positions

__all__ = ["on_a_gpu"]

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
pytestmark = pytest.mark.usefixtures("on_a_gpu")


class Pair(NamedTuple):
    first: int
    second: list[mx.array]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled, as it is."""
    seen: list[str] = []
    for name in ("_before", "_behind"):
        original = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, lambda *a, name=name, original=original: seen.append(name) or original(*a))
    return seen


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


@pytest.mark.parametrize("name", CASES)
def test_a_trial_compiles_all_that_a_prompt_needs(name: str, traced: list[str]) -> None:
    """By few of the blocks, so that it takes no more memory than loading does."""
    family, options, forms = CASES[name]
    model, config = ours(family, **options)
    ids = ids_for(config, 1, 9)
    mx.eval(model.trial_pass(ids))
    assert len(traced) == 2 * forms
    traced.clear()
    passes(model, ids, (9,))
    assert not traced


def test_a_trial_runs_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = ours("gemma3_text", num_hidden_layers=12, **PATTERN)
    calls: list[Any] = []
    original = compiled.CompiledBlock.__call__
    monkeypatch.setattr(compiled.CompiledBlock, "__call__", lambda self, *a: calls.append(self) or original(self, *a))
    model.trial_pass(ids_for(config, 1, 9))
    assert len(calls) == 2 * 2


def test_rows_that_start_elsewhere() -> None:
    model, config = ours("ministral3")
    ids = ids_for(config, 2, 12)
    shorter = mx.concatenate([mx.zeros((1, 4), mx.int32), ids[1:, :8].astype(mx.int32)], axis=1)
    got = passes(model, mx.concatenate([ids[:1], shorter]), (6, 5, 1), [BatchKVCache([0, 4]) for _ in model.layers])
    assert relative_error(got[:1], model(ids[:1])) <= TOLERANCE
    assert relative_error(got[1:, 4:], model(ids[1:, :8])) <= TOLERANCE


def test_layers_that_differ_in_a_number_are_not_alike() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    model.layers[1].input_layernorm.eps = 0.3
    got = passes(model, ids, (6, 6))
    assert relative_error(got, model(ids)) <= TOLERANCE
    assert len(model._compiled.forms) == 2


def test_a_layer_that_has_no_halves_is_called_as_it_is() -> None:
    class Whole(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer, self.calls = layer, 0

        kind = property(lambda self: self.layer.kind)
        needs_mask_array = property(lambda self: self.layer.needs_mask_array)

        def __call__(self, *args: Any) -> mx.array:
            self.calls += 1
            return self.layer(*args)

    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    model.layers[1] = Whole(model.layers[1])
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) <= TOLERANCE
    assert model.layers[1].calls == 3


def test_what_another_thread_compiled_is_not_taken_for_the_next_models() -> None:
    """MLX tells functions apart by their address, which the next one may get, and forgets them in one thread only."""

    def first(model: Any, ids: mx.array) -> mx.array:
        with mx.stream(mx.cpu):  # a thread has no stream by default
            y = passes(model, ids, (6,))
            mx.eval(y)
            return y

    with ThreadPoolExecutor(1) as worker:
        for i in range(40):
            model, config = ours("llama", rms_norm_eps=1e-5 if i % 2 else 0.3)
            ids = ids_for(config, 1, 6)
            want = model(ids)
            mx.eval(ids, want, model.parameters())
            assert relative_error(worker.submit(first, model, ids).result(), want) <= TOLERANCE
            first(model, ids)
            del model
            gc.collect()


def test_nothing_compiled_keeps_a_model_in_memory() -> None:
    model, config = ours("llama")
    mx.eval(passes(model, ids_for(config, 1, 12), (6, 6)))
    weight = weakref.ref(model.layers[0].mlp)
    del model
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("value", [Names(attention="a"), Pair(1, [mx.zeros(2)]), {"a": (mx.ones(3), 2)}, [None, "b"]])
def test_arrays_are_found_wherever_they_are(value: Any) -> None:
    arrays: list[mx.array] = []
    template, key = compiled._emptied(value, arrays)
    hash(key)
    assert not [a for _, a in tree_flatten(template) if isinstance(a, mx.array)]
    made = compiled._filled(template, iter(arrays))
    assert type(made) is type(value) and str(made) == str(value)


# ---- negative controls -------------------------------------------------------------------------------------------


def test_control_another_layers_arrays() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    passes(model, ids, (6,))
    first, second, *_ = model._compiled.compiled
    first.arrays, second.arrays = second.arrays, first.arrays
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2


def test_control_numbers_that_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    original = compiled._emptied
    monkeypatch.setattr(compiled, "_emptied", lambda v, a: (v, type(v)) if isinstance(v, float) else original(v, a))
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    model.layers[1].input_layernorm.eps = 0.3
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2


def test_control_the_positions_that_were_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Positions, "with_arrays", lambda self, arrays: Positions(self.rotation, 0, self.length))
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) > 1e-2
