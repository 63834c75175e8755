"""What is made of a model's layers ahead is dropped when these are exchanged, and never copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import relative_error
from compiled_runs import on_a_gpu, ours, passes
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from test_models import TOLERANCE, ids_for

__all__ = ["on_a_gpu"]

pytestmark = pytest.mark.usefixtures("on_a_gpu")


def _weights(model: Any) -> None:
    o_proj = model.layers[1].self_attn.o_proj
    o_proj.weight = o_proj.weight * 2.0


def _bias(model: Any) -> None:
    o_proj = model.layers[1].self_attn.o_proj
    o_proj.bias = mx.ones((o_proj.weight.shape[0],))


def _projection(model: Any) -> None:
    attention = model.layers[1].self_attn
    attention.o_proj = nn.Linear(*attention.o_proj.weight.shape[::-1], bias=False)


def _layer(model: Any) -> None:
    model.layers[1] = model.layers[0]


def _order(model: Any) -> None:
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def _fewer(model: Any) -> None:
    model.model.layers = model.layers[:2]


def _number(model: Any) -> None:
    model.layers[1].input_layernorm.eps = 0.3


def _all_weights(model: Any) -> None:
    model.load_weights([(name, a * 1.3) for name, a in tree_flatten(model.parameters())])


def _quantised(model: Any) -> None:
    nn.quantize(model, 32, 4)


def _adapter(model: Any) -> None:
    attention = model.layers[1].self_attn
    attention.o_proj = LoRALinear.from_base(attention.o_proj, r=4)
    attention.o_proj.lora_b = mx.random.normal(attention.o_proj.lora_b.shape, key=mx.random.key(1))


EXCHANGES = [
    *[_weights, _bias, _projection, _layer, _order, _fewer, _number, _all_weights, _quantised, _adapter],
]


@pytest.mark.parametrize("plan", [(6, 6), (1, 11)], ids=str)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_was_exchanged_is_seen_by_the_next_prompt(exchange: Callable[[Any], None], plan: tuple[int, ...]) -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    before = passes(model, ids, plan)
    exchange(model)
    got = passes(model, ids, plan)
    assert relative_error(got, model(ids)) <= TOLERANCE
    assert relative_error(got, before) > 1e-2


def test_dropout_ends_with_training() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    attention = model.layers[1].self_attn
    attention.o_proj = LoRALinear.from_base(attention.o_proj, r=4, dropout=0.5)
    attention.o_proj.lora_b = mx.random.normal(attention.o_proj.lora_b.shape, key=mx.random.key(1))
    model.train()
    passes(model, ids, (6, 6))
    model.eval()
    assert relative_error(passes(model, ids, (6, 6)), model(ids)) <= TOLERANCE


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_that_has_run(copied: Callable[[Any], Any]) -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 12)
    want = passes(model, ids, (6, 6))
    other = copied(model)
    assert relative_error(passes(other, ids, (6, 6)), want) <= TOLERANCE
    assert other._compiled is not model._compiled


def test_within_a_compiled_function_that_holds_the_weights() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 6)
    whole = mx.compile(lambda ids: passes(model, ids, (6,)), inputs=[model.state])
    assert relative_error(whole(ids), model(ids)) <= TOLERANCE
    assert relative_error(passes(model, ids, (6,)), model(ids)) <= TOLERANCE


def test_gradients_of_passes_with_a_cache() -> None:
    model, config = ours("llama")
    ids = ids_for(config, 1, 6)
    passes(model, ids, (6,))

    def slopes(plan: tuple[int, ...] | None) -> mx.array:
        def loss(model: Any) -> mx.array:
            return mx.sum(mx.square(model(ids) if plan is None else passes(model, ids, plan)))

        _, found = nn.value_and_grad(model, loss)(model)
        return mx.concatenate([a.flatten() for _, a in tree_flatten(found["model"]["layers"])])

    want = slopes(None)
    for plan in ((6,), (1,) * 6):
        assert relative_error(slopes(plan), want) <= 10 * TOLERANCE
