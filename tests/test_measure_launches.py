"""Launches are counted in the graph of a step: what runs, once each, and no views."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from decode_runs import checkpoint, fused
from kernel_runs import on_device
from measuring import FakeTimer
from mlx_lm.models.cache import KVCache
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx.loader import load_model
from flashnorm_mlx.measure.launches import VIEWS, launches, operations
from flashnorm_mlx.measure.loop import Timer, Trial

STEP = Trial("decode", 0, 4, 5, 1)


def ones(*shape: int) -> mx.array:
    a = mx.ones(shape)
    mx.eval(a)
    return a


def test_views_are_not_counted() -> None:
    x, w = ones(2, 3, 4), ones(4, 5)
    y = mx.split((x @ w).transpose(1, 0, 2)[1:], 5, axis=-1)[0].squeeze(-1)[..., None]
    z = mx.broadcast_to(y.reshape(1, 2, 2), (3, 2, 2)).flatten().view(mx.int32)
    assert operations(z) == ["Matmul"]
    assert {"Reshape", "Slice"} <= VIEWS


def test_what_runs_is_counted_once() -> None:
    x, w = ones(4, 4), ones(4, 4)
    y = x @ w
    assert Counter(operations(mx.exp(y) + mx.tanh(y), y)) == Counter(Matmul=1, Exp=1, Tanh=1, Add=1)
    mx.eval(y)
    assert operations(mx.exp(y)) == ["Exp"]  # what is there already is not made again
    assert operations(y) == []


def test_a_compiled_function_is_what_compiling_left_of_it() -> None:
    compiled = mx.compile(lambda x, w: mx.exp(x @ w + 1) * 2 + (x @ w).sum())
    names = operations(compiled(ones(4, 4), ones(4, 4)))
    assert names.count("Matmul") == 1  # of two equal ones
    assert len([name for name in names if name.startswith("Compiled")]) == 1
    assert len(names) == 3


class Toy:
    """A model whose step is ``steps`` products behind a look-up; it grows its cache at the sixteenth position."""

    def __init__(self, products: int) -> None:
        self.table, self.w, self.products = ones(8, 8), ones(8, 8), products

    def make_cache(self) -> list:
        return [KVCache()]

    def __call__(self, ids: mx.array, cache: list) -> mx.array:
        h = self.table[ids]
        for _ in range(self.products):
            h = h @ self.w
        cache[0].update_and_fetch(h[:, None], h[:, None])
        return h


@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_is_counted_from_token_to_token(batch: int) -> None:
    found = [launches(Toy(n), Trial("decode", 0, 4, 5, batch), 8, Timer()) for n in (3, 7)]
    assert found[1] - found[0] == 4
    assert found[0] == 3 + 2  # the look-up, and argmax


def test_counting_leaves_nothing_under_way() -> None:
    timer = FakeTimer()
    launches(Toy(1), STEP, 8, timer)
    assert timer.clock() == 0


def test_more_layers_are_more_launches(tmp_path: Path) -> None:
    """The same of each layer, in stock mlx-lm's model and in ours; and a norm with its gain is there to be counted."""
    found: dict[str, list[int]] = {"mlx-lm": [], "baseline": [], "none": []}
    for layers in (2, 3, 4):
        folder = checkpoint(tmp_path / str(layers), num_hidden_layers=layers)
        models: dict[str, Any] = {arm: load_model(folder, arm=arm) for arm in ("baseline", "none")}
        models["mlx-lm"] = load_stock(folder)[0]
        for name, model in models.items():
            found[name].append(launches(model, STEP, 331, Timer()))
    for counts in found.values():
        assert counts[2] - counts[1] == counts[1] - counts[0] > 5
    assert found["none"][0] < found["baseline"][0]


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "stablelm", "olmo"])
def test_the_fused_step_is_five_a_layer(tmp_path: Path, family: str, layers: int) -> None:
    """And the embeddings, the head, and argmax; GPT-2 has a second table. A quantised LayerNorm is none of its own."""
    depth = {"gpt2": "n_layer", "olmo": "n_layers"}.get(family, "num_hidden_layers")
    with on_device("gpu"):
        model = fused(checkpoint(tmp_path / "m", family, bits=4, **{depth: layers}), dtype="float16")
        assert launches(model, STEP, 331, Timer()) == 5 * layers + 3 + (family == "gpt2")
        if family == "llama":
            assert launches(load_stock(tmp_path / "m")[0], STEP, 331, Timer()) > 15 * layers
