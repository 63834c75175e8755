"""Decode steps where not every operation is done by its kernel."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from decode_runs import Action, checkpoint, error, run, tokens
from kernel_runs import DEVICES, on_device
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx import loader
from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.kernels import choice, dialect
from flashnorm_mlx.kernels.packed import Failed
from flashnorm_mlx.layers import fused
from flashnorm_mlx.loader import load_model

PLAN: list[Action] = [("prompt", 9), *[("step", 1)] * 3]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_device(request.param, check=False, seeds=(0,)) as name:
        if name == "harness":
            mx.disable_compile()
        yield name
        mx.enable_compile()


@pytest.mark.parametrize("arm", ["flashnorm", "baseline"])
@pytest.mark.parametrize("plain", ["normed", "added", "gated", "project"])
def test_some_operations_in_plain_form(
    plain: str, arm: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def choice(operation: str, forms: Mapping[str, Any], x: mx.array, residual: mx.array | None) -> str:
        asked.append(operation)
        values = [form(x, residual) for form in forms.values()]
        assert values[0].shape == values[1].shape and values[0].dtype == values[1].dtype
        return "plain" if plain in operation else "kernel"

    monkeypatch.setattr(fused, "fastest", choice)
    path = checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=False)
    model = load_model(path, arm=arm, kernels="reference")
    model.fuse(measure=True)
    chosen = [1 in p.plain_for for p in model._step.blocks[0].projections]
    normed = arm == "flashnorm"
    expected = {
        "normed": [normed, False, normed, False],
        "added": [False, True, False, True],
        "gated": [False, False, True, False],
        "project": [True, True, True, True],
    }
    assert chosen == expected[plain]
    assert len(set(asked)) == 5 and any("with bias" in operation for operation in asked)
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6


@pytest.mark.parametrize("plain", ["normed", "added", "through gelu_pytorch_tanh", "project"])
def test_an_activation_without_a_gate_in_plain_form(
    plain: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choice(operation: str, forms: Mapping[str, Any], x: mx.array, residual: mx.array | None) -> str:
        kernel, other = (form(x, residual) for form in forms.values())
        assert kernel.dtype == other.dtype and error([kernel], [other]) <= 5e-6
        return "plain" if plain in operation else "kernel"

    monkeypatch.setattr(fused, "fastest", choice)
    path = checkpoint(tmp_path / "m", "gpt2")
    model = load_model(path, kernels="reference")
    model.fuse(measure=True)
    chosen = [1 in p.plain_for for p in [*model._step.blocks[0].projections, model._step.head]]
    assert (
        chosen
        == {
            "normed": [True, False, True, False, True],
            "added": [False, True, False, True, False],
            "through gelu_pytorch_tanh": [False, False, True, False, False],
            "project": [True] * 5,
        }[plain]
    )
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6


@pytest.mark.parametrize("plain", ["behind a post-norm", "gated", "project"])
@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_pending_post_norms_in_plain_form(
    family: str, plain: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is with the post-norm, and heeded."""
    launches = []

    def choice(operation: str, forms: Mapping[str, Any], x: mx.array, residual: mx.array | None) -> str:
        kernel, other = (form(x, residual) for form in forms.values())
        assert kernel.shape == other.shape and error([kernel], [other]) <= 5e-6
        return "plain" if plain in operation else "kernel"

    def launch(operation: str, *args: Any, **options: Any) -> list[mx.array]:
        launches.append(operation)
        return original(operation, *args, **options)

    monkeypatch.setattr(fused, "fastest", choice)
    path = checkpoint(tmp_path / "m", family)
    model = load_model(path, kernels="reference")
    model.fuse(measure=True)
    original = dialect.launch
    monkeypatch.setattr(dialect, "launch", launch)
    if device == "harness":  # on a GPU a step is traced once
        model(tokens(1), cache=make_prompt_cache(model))
        # of two layers all but the first q, k, v, and the head, have a post-norm in front; o and down have none
        assert launches.count("project") == {"behind a post-norm": 5, "gated": 7, "project": 0}[plain]
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "gpt2"])
def test_forms_are_measured(family: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model is loaded, whatever wins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("_known", {}), ("REPEAT", 2), ("LAUNCHES", 2)):
        monkeypatch.setattr(choice, name, value)
    path = checkpoint(tmp_path / "m", family)
    model = load_model(path, kernels="reference")
    model.fuse(measure=True)
    assert any("behind a post-norm" in operation for operation in choice.measured()) == (family != "gpt2")
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6


def test_kernels_that_fail_are_replaced_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*args: Any, **options: Any) -> mx.array:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(dialect, "launch", launch)
    monkeypatch.setattr(loader, "backend", lambda: "cuda")
    path = checkpoint(tmp_path / "m", bits=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(path, dtype="float32")
    said = [str(w.message) for w in caught]
    assert len(set(said)) == len(said) == 6  # five shapes of projections, and the step
    assert all("no compiler here" in text and "much more" not in text for text in said)
    assert said[-1].startswith("flashnorm: fused kernels fail, plain operations take their place: 1 x 1 tokens")
    assert model.kernels == "reference"
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6
    with pytest.raises(FlashNormError, match="the kernels fail for 1 x 1 tokens on this device: no compiler here; use"):
        load_model(path, kernels="fused")


def test_a_prompts_kernel_that_fails_is_noticed_as_the_model_is_loaded(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "backend", lambda: "cuda")
    path, launch = checkpoint(tmp_path / "m"), dialect.launch
    model = load_model(path, kernels="fused", dtype="float32")
    assert model.kernels == "fused" and (1, 9, model.args.hidden_size) in model._compiled.shapes

    def broken(operation: str, *args: Any, **options: Any) -> list[mx.array]:
        if operation == "gate":
            raise RuntimeError("no compiler here\nand much more")
        return launch(operation, *args, **options)

    monkeypatch.setattr(dialect, "launch", broken)
    with pytest.raises(
        FlashNormError, match=r"the kernels fail for a prompt of 9 tokens on this device: no compiler here;"
    ):
        load_model(path, kernels="fused", dtype="float32")
    model = load_model(path, kernels="reference")
    model.fuse()
    with pytest.raises(Failed, match="a prompt of 9 tokens"):
        model.try_prompt()
    assert model.kernels == "reference"
    assert error(run(model, PLAN), run(load_stock(path)[0], PLAN)) <= 5e-6


def test_a_launch_that_mlx_refuses_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's limit on threads is a ValueError."""

    def launch(*args: Any, **options: Any) -> mx.array:
        raise ValueError("Thread group size (512) is greater than the maximum")

    monkeypatch.setattr(dialect, "launch", launch)
    monkeypatch.setattr(loader, "backend", lambda: "metal")
    with pytest.warns(UserWarning, match="Thread group size"):
        assert load_model(checkpoint(tmp_path / "m")).kernels == "reference"


def test_layers_of_different_capacity_are_left_to_plain_operations(tmp_path: Path, device: str) -> None:
    """As an interrupted prompt leaves them."""
    path = checkpoint(tmp_path / "m")
    model, stock_model = load_model(path, kernels="reference"), load_stock(path)[0]
    model.fuse()
    cache, theirs = make_prompt_cache(model), make_prompt_cache(stock_model)
    cache[0].update_and_fetch(mx.zeros((1, 1, 300, 64)), mx.zeros((1, 1, 300, 64)))
    cache[0].trim(300)
    for ids in (tokens(20), tokens(1), tokens(1)):
        assert error([model(ids, cache=cache)], [stock_model(ids, cache=theirs)]) <= 5e-6
    assert cache[0].capacity != cache[1].capacity


def test_an_interruption_loses_no_token(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "m")
    model, stock_model = load_model(path, kernels="reference"), load_stock(path)[0]
    model.fuse()
    cache, theirs = make_prompt_cache(model), make_prompt_cache(stock_model)
    for m, c in ((model, cache), (stock_model, theirs)):
        for _ in range(3):
            m(tokens(1), cache=c)

    def interrupt(self: KVCache, size: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KVCache, "_reserve", interrupt)
        cache[1].settle()
    assert [c.waiting for c in cache] == [3, 3]
    assert error([model(tokens(1), cache=cache)], [stock_model(tokens(1), cache=theirs)]) <= 5e-6


def _weights(model: Any) -> None:
    model.layers[1].mlp.down_proj.weight = 2 * model.layers[1].mlp.down_proj.weight


def _layers(model: Any) -> None:
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def _mlps(model: Any) -> None:
    first, second, *_ = model.layers
    first.mlp, second.mlp = second.mlp, first.mlp


def _head(model: Any) -> None:
    model.lm_head.weight = -model.lm_head.weight


def _gain(model: Any) -> None:
    norm = model.layers[1].input_layernorm
    norm.weight = mx.full((model.args.hidden_size,), 2.0)


@pytest.mark.parametrize("exchange", [_weights, _layers, _mlps, _head, _gain])
@pytest.mark.parametrize("has_run", [False, True])
def test_what_was_exchanged_is_noticed_at_the_next_prompt(
    has_run: bool, exchange: Callable[[Any], None], tmp_path: Path, device: str
) -> None:
    path = checkpoint(tmp_path / "m", tie_word_embeddings=False)
    model, plain = load_model(path, kernels="reference"), load_model(path, kernels="reference")
    model.fuse()
    before = run(model, PLAN) if has_run else []
    for m in (model, plain):
        exchange(m)
    got = run(model, PLAN)
    assert error(got, run(plain, PLAN)) <= 5e-6 and model.kernels == "reference"
    assert not before or error(got, before) > 1e-2


def test_training_and_evaluating_leave_the_kernels(tmp_path: Path, device: str) -> None:
    model = load_model(checkpoint(tmp_path / "m"), kernels="reference")
    model.fuse()
    for change in (model.train, model.eval, model.freeze, model.unfreeze):
        change()
        run(model, PLAN)
        assert model.kernels == "fused"


def test_a_model_is_freed_when_it_is_deleted(tmp_path: Path, device: str) -> None:
    model = load_model(checkpoint(tmp_path / "m"), kernels="reference")
    model.fuse()
    watched = weakref.ref(model._step)
    gc.collect()
    gc.disable()
    try:
        del model
        assert watched() is None
    finally:
        gc.enable()


def test_ids_below_zero_count_from_the_end(tmp_path: Path, device: str) -> None:
    model = load_model(checkpoint(tmp_path / "m"), kernels="reference")
    model.fuse()
    below, above = (model(mx.array([[i]]), cache=make_prompt_cache(model)) for i in (-1, 330))
    assert mx.array_equal(below, above).item()


def test_what_no_kernel_covers_is_left_to_plain_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "backend", lambda: "metal")
    path = checkpoint(tmp_path / "m", head_dim=48)
    assert load_model(path).kernels == "reference"
    with pytest.raises(FlashNormError, match="no kernel for a head_dim of 48; use kernels='auto'"):
        load_model(path, kernels="fused")
