"""Sequences of different lengths at once, decoded by kernels: their cache against mlx-lm's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import relative_error
from decode_runs import TOLERANCE, checkpoint, fused, tokens
from mlx_lm.generate import BatchGenerator
from mlx_lm.models import cache as stock
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx.batched import BatchKVCache, BatchRotatingKVCache
from flashnorm_mlx.engine import decode, steps
from flashnorm_mlx.kernels.attend import TAIL
from flashnorm_mlx.rotating import Windowed


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are left to kernels from the first step on."""
    monkeypatch.setattr(decode, "PATIENCE", 0)


def batch_of(model: Any, lengths: list[int]) -> list:
    """A batch's cache: prompts of these lengths, each gone through on its own."""
    alone = []
    for i, length in enumerate(lengths):
        cache = stock.make_prompt_cache(model)
        model(tokens(50)[:, i : i + length], cache=cache)
        mx.eval([c.state for c in cache])
        alone.append(cache)
    return [layers[0].merge(layers) for layers in zip(*alone, strict=True)]


def decoded(model: Any, cache: list, count: int, length: int = 1) -> mx.array:
    rows = cache[0].left_padding.size
    ids = tokens(200, rows)
    outputs = [model(ids[:, i * length : (i + 1) * length], cache=cache) for i in range(count)]
    mx.eval(outputs)
    return mx.concatenate(outputs, axis=1)


def gone_through(model: Any, trimmed: int = 4, steps: int = TAIL + 3) -> list[mx.array]:
    """Logits of steps, with everything between them that mlx-lm does with a batch."""
    cache = batch_of(model, [9, 21, 14])
    outputs = [decoded(model, cache, steps)]
    for c in cache:
        c.filter([0, 2])  # of 21 the longest is gone, and with it padding
    outputs.append(decoded(model, cache, 3, length=2))
    assert stock.trim_prompt_cache(cache, trimmed) == trimmed
    outputs.append(decoded(model, cache, 2))
    for c, other in zip(cache, batch_of(model, [30]), strict=True):
        c.extend(other)
    outputs.append(decoded(model, cache, 5))
    for c in cache:
        assert [n.item() + trimmed for n in c.offset] == [22 + steps, 27 + steps, 35 + trimmed]
    single = [c.extract(1) for c in cache]
    outputs.append(model(tokens(1), cache=single))
    return outputs


@pytest.mark.parametrize(("family", "bits"), [("llama", None), ("qwen3", 4), ("gpt2", None)])
def test_against_stock(family: str, bits: int | None, tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", family, bits)
    model = fused(path)
    passes.clear()
    got, want = gone_through(model), gone_through(load_stock(path)[0])
    # one more of each new shape, which is tried on an empty cache
    made = [(3, 1)] * (TAIL + 4) + [(2, 2)] * 4 + [(2, 1)] * 3 + [(3, 1)] * 5 + [(1, 1)]
    assert passes == made
    assert max(relative_error(a, b) for a, b in zip(got, want, strict=True)) <= TOLERANCE


WINDOWS = {
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2},
    "llama": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("family", WINDOWS)
def test_layers_that_see_a_window(
    family: str, tmp_path: Path, device: str, passes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences shorter and longer than the window, until the buffer is full."""
    monkeypatch.setattr(Windowed, "SLACK", 32)
    path = checkpoint(tmp_path / "m", family, **WINDOWS[family])
    model = fused(path)
    passes.clear()
    moved: list[int] = []
    original = Windowed._appended

    def appended(self: Windowed, buffer: mx.array, newest: mx.array) -> tuple[mx.array, int]:
        moved.append(self.appended + newest.shape[3] > self.capacity)
        return original(self, buffer, newest)

    monkeypatch.setattr(Windowed, "_appended", appended)
    steps = 3 * TAIL + 3
    got, want = (gone_through(m, trimmed=0, steps=steps) for m in (model, load_stock(path)[0]))
    assert any(moved), "older tokens are moved out of the buffer"
    assert passes == [(3, 1)] * (steps + 1) + [(2, 2)] * 4 + [(2, 1)] * 3 + [(3, 1)] * 5 + [(1, 1)]
    assert max(relative_error(a, b) for a, b in zip(got, want, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("family", WINDOWS)
def test_prompts_that_are_padded_at_their_ends(family: str, tmp_path: Path, device: str, passes: list) -> None:
    """As mlx-lm's server has them, behind steps of the same shape; each sequence is compared with itself alone."""
    path = checkpoint(tmp_path / "m", family, **WINDOWS[family])
    model, theirs = fused(path), load_stock(path)[0]
    lengths, ids, cache = [1, 4], tokens(11, 2), batch_of(model, [49, 50])
    model(ids[:, :4], cache=cache)
    for c in cache:
        c.prepare(lengths=lengths, right_padding=[4 - length for length in lengths])
    model(ids[:, 4:8], cache=cache)
    for c in cache:
        c.finalize()
    got = [model(ids[:, i : i + 1], cache=cache) for i in range(8, 11)]
    assert passes[-3:] == [(2, 1)] * 3
    for row, (start, length) in enumerate(zip([49, 50], lengths, strict=True)):
        own = [tokens(50)[:, row : row + start], ids[row : row + 1, : 4 + length], ids[row : row + 1, 8:]]
        want = theirs(mx.concatenate(own, axis=1))[0, -3:]
        assert relative_error(mx.concatenate(got, axis=1)[row], want) <= TOLERANCE


def test_what_is_assigned_while_the_kernels_have_it(tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", "llama", **WINDOWS["llama"])
    model, theirs = fused(path), load_stock(path)[0]
    cache, plain = batch_of(model, [38, 9]), batch_of(theirs, [38, 9])
    for m, c in ((model, cache), (theirs, plain)):
        decoded(m, c, 6)
    assert cache[0].left_padding.tolist() == plain[0].left_padding.tolist() == [-4, 25]
    assert cache[0].buffer is not None
    for name in ("offset", "left_padding"):
        before = getattr(cache[0], name)
        setattr(cache[0], name, before - 1)
        assert cache[0].buffer is None and getattr(cache[0], name).tolist() == (before - 1).tolist()
        setattr(cache[0], name, before)
        decoded(model, cache, 2)  # the first in plain operations: the layers' caches differ in form
        assert cache[0].buffer is not None


@pytest.mark.parametrize("options", [{}, WINDOWS["llama"]], ids=["full", "window"])
def test_mlx_lms_batch_generator(options: dict[str, Any], tmp_path: Path, device: str, passes: list) -> None:
    """As the server runs it: requests of several lengths, one of which joins later and one of which ends earlier."""

    def answers(model: Any) -> dict[int, list[int]]:
        generator = BatchGenerator(model, max_tokens=9, stop_tokens=[])
        found: dict[int, list[int]] = {}
        prompts = [tokens(50)[0, :length].tolist() for length in (9, 21)]
        generator.insert(prompts, max_tokens=[4, 9])
        for step in range(40):
            if step == 4:
                generator.insert([tokens(40)[0, 20:].tolist()])
            prompt, generated = generator.next()
            for r in generated:
                found.setdefault(r.uid, []).append(r.token)
            if step > 4 and not prompt and not generated:
                break
        return found

    path = checkpoint(tmp_path / "m", **options)
    model = fused(path)
    passes.clear()
    got = answers(model)
    assert {len(row) for row in got.values()} == {4, 9} and len(got) == 3
    assert {rows for rows, _ in passes} >= {1, 2}
    assert got == answers(load_stock(path)[0])


@pytest.mark.parametrize("held", [4, 30, 60], ids=["shorter", "longer", "longer than the window"])
@pytest.mark.parametrize("options", [{}, WINDOWS["llama"]], ids=["full", "window"])
def test_joining_one_of_mlx_lms(options: dict[str, Any], held: int, tmp_path: Path, device: str, passes: list) -> None:
    """A sequence that the kernels have joins a batch that is in mlx-lm's caches still, and the other way round."""
    path = checkpoint(tmp_path / "m", **options)
    model, theirs = fused(path), load_stock(path)[0]
    for ours_joins in (True, False):
        got = []
        for m in (model, theirs):
            running, single = batch_of(theirs, [9, 6]), batch_of(m, [held])
            decoded(theirs, running, 2)
            decoded(m, single, 3)
            whole, other = (running, single) if ours_joins else (single, running)
            for c, more in zip(whole, other, strict=True):
                c.extend(more)
            got.append(decoded(theirs, whole, 4))
        assert relative_error(*got) <= TOLERANCE
    assert passes.count((1, 1)) >= 6


@pytest.mark.parametrize(("options", "ours"), [({}, BatchKVCache), (WINDOWS["llama"], BatchRotatingKVCache)])
def test_what_mlx_lm_sees(options: dict[str, Any], ours: type, tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", **options)
    model, theirs = fused(path), load_stock(path)[0]
    cache, plain = batch_of(model, [9, 4]), batch_of(theirs, [9, 4])
    for m, c in ((model, cache), (theirs, plain)):
        decoded(m, c, 5)
    assert type(cache[0]) is ours and cache[0].buffer is not None
    assert cache[0].size() == plain[0].size() and not cache[0].empty() and cache[0].nbytes > 0
    assert cache[0].offset.tolist() == plain[0].offset.tolist() == [14, 9]
    assert cache[0].buffer is not None, "nothing of this gives the buffer back"
    other = copy.deepcopy(cache)
    for mine, whole in zip(other[0].state[:2], plain[0].state[:2], strict=True):
        assert relative_error(mine[..., :14, :], whole[..., :14, :]) <= TOLERANCE
    assert relative_error(decoded(theirs, other, 3), decoded(theirs, plain, 3)) <= TOLERANCE


def test_new_tokens_that_are_padding_are_left_to_mlx(tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m")
    got = []
    for model in (fused(path), load_stock(path)[0]):
        passes.clear()
        cache = [stock.BatchKVCache([2, 0]) for _ in model.layers]
        got.append(model(tokens(3, 2), cache=cache)[:, -1])
        assert passes == []
    assert relative_error(*got) <= TOLERANCE


@pytest.mark.parametrize("options", [{}, WINDOWS["llama"]], ids=["full", "window"])
@pytest.mark.parametrize("wrong", ["padding", "one too few", "positions"])
def test_control_rows_that_are_taken_for_one_another(
    wrong: str, options: dict[str, Any], tmp_path: Path, device: str, passes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = steps.step_rows
    if wrong == "padding":
        monkeypatch.setattr(steps, "step_rows", lambda *given: original(*given[:-1], 0))
    elif wrong == "one too few":
        monkeypatch.setattr(steps, "step_rows", lambda *given: original(*given[:-1], np.maximum(0, given[-1] - 1)))
    else:
        monkeypatch.setattr(steps, "step_rows", lambda *g: original(*g[:4], 0 * g[4] + g[4][:, :1], *g[5:]))
    path = checkpoint(tmp_path / "m", **options)
    got, want = (decoded(m, batch_of(m, [9, 4]), 3) for m in (fused(path), load_stock(path)[0]))
    assert relative_error(got, want) > 1e-3
