"""The timed loops are honest: nothing is under way when a clock is read, and an independent stopwatch agrees."""

from __future__ import annotations

import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import our_model, stock_with_weights, tiny_config, write_checkpoint
from measuring import FakeModel, FakeTimer

from flashnorm_mlx.loader import load_model
from flashnorm_mlx.measure import loop
from flashnorm_mlx.measure.loop import Timer, Trial, trials


def test_the_fake_clock_catches_a_loop_that_does_not_wait() -> None:
    """A negative control of the tests below."""
    timer = FakeTimer()
    model = FakeModel(timer, 1.0)
    timer.clock()
    model(mx.zeros((1, 1), mx.int32))
    timer.launch()
    with pytest.raises(AssertionError, match="1 pieces of work under way"):
        timer.clock()


def test_decode_counts_every_step_and_no_more() -> None:
    timer = FakeTimer()
    model = FakeModel(timer, 0.5)
    found = Trial("decode", 0, 7, 0, 3).run(model, 10, timer)
    assert found.seconds == 3.5
    assert found.tokens == 21
    assert model.calls == [(3, 1)] * 7
    assert timer.pending == []


def test_depth_is_filled_in_before_the_clock_starts() -> None:
    timer = FakeTimer()
    model = FakeModel(timer, 0.5)
    found = Trial("decode", 0, 4, 5000, 1).run(model, 10, timer)
    assert found.seconds == 2.0
    assert model.calls == [(1, 2048), (1, 2048), (1, 904)] + [(1, 1)] * 4


@pytest.mark.parametrize(("length", "calls"), [(1, 1), (2, 2), (16, 2), (2049, 2), (2050, 3)])
def test_prefill_is_the_whole_prompt_to_its_first_token(length: int, calls: int) -> None:
    timer = FakeTimer()
    model = FakeModel(timer, 1.0)
    found = Trial("prefill", length, 0, 0, 2).run(model, 10, timer)
    assert len(model.calls) == calls == found.seconds == found.first_token_s
    assert sum(shape[1] for shape in model.calls) == length
    assert found.tokens == 2 * length


def test_work_left_over_by_loading_is_not_in_the_loop() -> None:
    timer = FakeTimer()
    model = FakeModel(timer, 1.0)
    timer.pending.append(100.0)
    assert loop.decode(model, mx.zeros((1, 1), mx.int32), [], 3, timer).seconds == 3


def test_generate_counts_the_prompt_and_waits_for_the_step_that_nobody_reads() -> None:
    timer = FakeTimer()
    model = FakeModel(timer, 1.0)
    found = Trial("generate", 8, 12, 0, 1).run(model, 4, timer)
    assert model.calls[:2] == [(1, 7), (1, 1)]
    assert found.seconds == len(model.calls) == 2 + 12


def test_finish_waits_for_the_stream_that_generate_uses() -> None:
    from mlx_lm.generate import generation_stream

    with mx.stream(generation_stream):
        x = mx.random.normal((350, 350))
        for _ in range(4):
            x = x @ x * 1e-3
        mx.async_eval(x)
    Timer().finish()
    start = time.perf_counter()
    mx.eval(x)
    ready = time.perf_counter() - start
    assert ready < 0.005


def test_trials_are_all_combinations() -> None:
    found = trials([16, 32], [8, 0], [0, 64], [1, 4])
    kinds = [t.kind for t in found]
    assert (kinds.count("prefill"), kinds.count("decode"), kinds.count("generate")) == (8, 4, 2)
    assert len(set(found)) == len(found)
    assert trials([0], [0], [0], [1]) == []
    assert [t.kind for t in trials([4], [4], [8], [1])] == ["prefill", "decode"]  # generate starts from nothing


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> object:
    return load_model(write_checkpoint(tmp_path_factory.mktemp("m") / "model", tokenizer=False))


def test_generate_stamps_the_first_token_before_the_last(model: object) -> None:
    found = Trial("generate", 8, 12, 0, 1).run(model, 32, Timer())
    assert found.tokens == 12
    assert found.first_token_s is not None
    assert 0 < found.first_token_s < found.seconds


def test_an_independent_stopwatch_agrees(model: object) -> None:
    """Tokens a second within 3 % of a plain stopwatch around the same loop; a disturbed try is repeated."""
    timer, errors = Timer(), []
    for _ in range(10):
        cache = loop.filled_cache(model, loop.prompt_ids(1, 8, 32), timer)
        y = mx.array([[3]])
        mx.eval(y)
        start = time.perf_counter()
        found = loop.decode(model, y, cache, 64, timer)
        mx.eval([c.state for c in cache])
        outside = 64 / (time.perf_counter() - start)
        errors.append(abs(found.tokens_per_second / outside - 1))
        if errors[-1] < 0.03:
            return
    raise AssertionError(f"off by {errors}")


def test_decode_computes_what_a_plain_loop_does(model: object) -> None:
    """The pipelined loop feeds each token back, and its last step is done, not only handed over."""
    timer = Timer()
    ids = loop.prompt_ids(1, 6, 32)
    cache = loop.filled_cache(model, ids[:, :-1], timer)
    loop.decode(model, ids[:, -1:], cache, 5, timer)
    plain = loop.filled_cache(model, ids[:, :-1], timer)
    y = ids[:, -1:]
    for _ in range(5):
        y = mx.argmax(model(y, cache=plain)[:, -1], axis=-1, keepdims=True)  # type: ignore[operator]
    for ours, theirs in zip(cache, plain, strict=True):
        assert ours.offset == theirs.offset == 10
        assert mx.array_equal(ours.state[0], theirs.state[0])


def test_arms_are_loaded_in_one_dtype(tmp_path: Path) -> None:
    from flashnorm_mlx.measure.arms import load_all, load_arm

    folder = write_checkpoint(tmp_path / "m", dtype=mx.float16, tokenizer=False)
    ids = mx.array([[3, 4]])
    assert {load_arm(name, folder, None)(ids).dtype for name in ("mlx-lm", "baseline", "flashnorm")} == {mx.float32}
    (folder / "config.json").write_text('{"model_type": "nobody"}')
    models, facts, unavailable = load_all(folder, ["mlx-lm", "none"], None, Timer(), lambda *_: None)
    assert models == facts == {}
    assert list(unavailable) == ["mlx-lm", "none"]
    assert all("nobody" in why and "\n" not in why for why in unavailable.values())


def test_an_arm_that_fails_leaves_nothing_in_memory() -> None:
    """Else the next one's bytes would be told from those of a model that is gone by then."""
    from flashnorm_mlx.measure.arms import load_all

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.layers = mx.zeros(2**20), [nn.Linear(1, 1)]
            mx.eval(self.weight)

        def __call__(self, ids: mx.array, cache: list) -> mx.array:
            raise ValueError("no mask for this")

    def load(name: str, folder: Path, dtype: str | None) -> nn.Module:
        return Broken() if name == "mlx-lm" else our_model(tiny_config("llama"), weights)

    weights = stock_with_weights(tiny_config("llama"))[1]
    mx.eval(weights)
    _, facts, unavailable = load_all(Path(), ["mlx-lm", "none"], None, Timer(), lambda *_: None, load)
    assert unavailable == {"mlx-lm": "ValueError: no mask for this"}
    assert facts["none"]["model_bytes"] >= 0
