"""A prompt's blocks are handed over as they are built, and waited for where they take too much memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from mlx_lm.models.cache import make_prompt_cache

from flashnorm_mlx.engine import compiled, under_way

TOLERANCE = 5e-6
MOST = 64 * 400


class Cache:
    """Of ``nbytes``; None: there are none yet."""

    def __init__(self, nbytes: int | None = None) -> None:
        self.nbytes = nbytes or 0

    def empty(self) -> bool:
        return self.nbytes == 0


class Silent:
    """Does not say what it holds."""

    def empty(self) -> bool:
        raise NotImplementedError


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is in use, and what was handed over and awaited."""
    seen: dict[str, Any] = {"active": 10_000, "handed": [], "awaited": []}
    monkeypatch.setattr(mx, "get_active_memory", lambda: seen["active"])
    monkeypatch.setattr(mx, "async_eval", seen["handed"].append)
    monkeypatch.setattr(mx, "eval", seen["awaited"].append)
    return seen


def test_the_blocks_before_the_last_are_awaited(memory: dict[str, Any]) -> None:
    """Those that came before the newest two, and not while as much is in use as is allowed."""
    h = [mx.zeros((1, 10, 10)) for _ in range(9)]
    way = under_way.UnderWay(h[0], [])
    for residual, active in zip(h[1:], (0, MOST, 0, MOST + 1, 0, MOST, 0, MOST + 1), strict=True):
        memory["active"] = 10_000 + active
        way.add(residual)
    assert [id(a) for a in memory["handed"]] == [id(h[i]) for i in (2, 4, 6, 8)]
    assert [id(a) for a in memory["awaited"]] == [id(h[i]) for i in (2, 6)]


@pytest.mark.parametrize("held", [0, 5000])
def test_what_caches_take_is_not_waited_for(held: int, memory: dict[str, Any]) -> None:
    h, caches = mx.zeros((1, 10, 10)), [Cache(held), None, Cache()]
    memory["active"] += held
    way = under_way.UnderWay(h, caches)
    caches[2].nbytes = 3000
    for excess, waits in ((3000, 0), (3001, 1)):
        memory["active"] = 10_000 + held + MOST + excess
        way.add(h), way.add(h)
        assert len(memory["awaited"]) == waits


def test_caches_that_do_not_say_what_they_hold(memory: dict[str, Any]) -> None:
    h = mx.zeros((1, 10, 10))
    way = under_way.UnderWay(h, [Silent(), object()])
    memory["active"] += MOST + 1
    way.add(h), way.add(h)
    assert len(memory["awaited"]) == 1


@pytest.mark.parametrize(
    ("architecture", "layers", "handed"), [("llama", 4, [0, 2]), ("llama", 5, [0, 2]), ("gemma4_text", 6, [0, 2])]
)
def test_prompts_are_handed_over_as_far_as_caches_need_them(
    architecture: str, layers: int, handed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last block's output, nor what layers yield that have no cache."""
    config = tiny_config(architecture, num_hidden_layers=layers)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    outputs: list[mx.array] = []
    given: list[mx.array] = []
    original, call = mx.async_eval, type(model.layers[0]).__call__

    def recorded(*args: Any) -> mx.array:
        outputs.append(call(*args))
        return outputs[-1]

    monkeypatch.setattr(type(model.layers[0]), "__call__", recorded)
    monkeypatch.setattr(mx, "async_eval", lambda *a: given.extend(a) or original(*a))
    assert relative_error(model(ids, cache=make_prompt_cache(model)), stock(ids)) <= TOLERANCE
    assert [id(a) for a in given] == [id(outputs[i]) for i in handed]
    given.clear()
    model(ids)  # without a cache, as in training, nothing is computed
    model(ids[:, :1], cache=make_prompt_cache(model))  # nor of one token, whose sampling is built behind it
    assert not given


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_within_a_transformation_nothing_is_computed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("llama")
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), mx.random.randint(2, config["vocab_size"], (1, 21))
    monkeypatch.setattr(under_way, "RESIDUALS", -(2**30))
    monkeypatch.setattr(compiled, "MANY", 1)
    monkeypatch.setattr(mx, "default_device", lambda: getattr(mx, device))
    whole = mx.compile(lambda ids: model(ids, cache=make_prompt_cache(model)))
    assert relative_error(whole(ids), stock(ids)) <= TOLERANCE
    slope = mx.grad(lambda scale: mx.sum(model(ids, make_prompt_cache(model), model.embed(ids) * scale)))
    assert mx.isfinite(slope(mx.array(1.0))).item()
