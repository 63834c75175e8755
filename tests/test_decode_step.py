"""Whole decode steps by fused kernels: against the same model in plain operations, and against stock mlx-lm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import relative_error, tying
from decode_runs import SHORT, TOLERANCE, Action, checkpoint, error, fused, rounding, run, tokens
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models import cache as stock
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx import loader
from flashnorm_mlx.cache import KVCache
from flashnorm_mlx.engine import decode
from flashnorm_mlx.engine.decode import PATIENCE, DecodeStep
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.kernels import dialect
from flashnorm_mlx.kernels.attend import default_layout, step_rows
from flashnorm_mlx.kernels.packed import Uncovered
from flashnorm_mlx.loader import load_model

#: Past the 32 tokens of the tail, with several tokens at once, and back.
LONG: list[Action] = [
    *[("prompt", 9), *[("step", 1)] * 40, *[("step", 3)] * (PATIENCE + 2), ("trim", 5), *[("step", 1)] * 2],
    *[("trim", 44), ("step", 1), ("prompt", 12), ("step", 1), ("step", 3)],
]
#: The same without going back, which the rotating caches of mlx-lm's local layers can't.
ONWARD: list[Action] = [
    ("prompt", 9),
    *[("step", 1)] * 40,
    *[("step", 3)] * (PATIENCE + 2),
    ("prompt", 12),
    ("step", 1),
]


CASES = [
    ("llama", False, "flashnorm", None, LONG),
    ("llama", True, "baseline", 4, SHORT),
    ("llama", True, "flashnorm", 4, SHORT),
    ("llama", False, "none", 8, SHORT),
    ("qwen2", True, "flashnorm", None, SHORT),
    ("qwen2", False, "flashnorm", 4, LONG),
    ("qwen3", False, "flashnorm", None, SHORT),
    ("qwen3", True, "flashnorm", 4, LONG),
    ("qwen3", False, "baseline", None, SHORT),
    ("gemma", True, "flashnorm", 4, SHORT),
    ("gemma2", True, "flashnorm", 4, SHORT),
    ("gemma2", True, "baseline", None, SHORT),
    ("gemma3_text", True, "flashnorm", 4, ONWARD),
    ("gemma3_text", False, "flashnorm", None, SHORT),
    ("gemma3_text", True, "none", 4, SHORT),
    ("gemma3_text", True, "baseline", None, SHORT),
    ("openelm", True, "flashnorm", 4, LONG),
    ("llama", False, "flashnorm", None, ONWARD),
    ("openelm", False, "none", None, SHORT),
]
#: Layers that see a window, of fewer tokens than are decoded.
LOCAL: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2},
    "llama": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize(("family", "tied", "arm", "bits", "plan"), CASES)
def test_steps_are_the_models_own_and_stock_mlx_lms(
    family: str, tied: bool, arm: str, bits: int | None, plan: list[Action], tmp_path: Path, device: str, passes: list
) -> None:
    local = LOCAL.get(family, {}) if plan is not LONG else {}
    path = checkpoint(tmp_path / "m", family, bits, **tying(family, tied), **local)
    model = fused(path, arm=arm)
    passes.clear()
    got = run(model, plan)
    assert passes.count((1, 1)) == plan.count(("step", 1))
    if plan is not SHORT:
        assert passes.count((1, 3)) >= 3
    assert error(got, run(load_model(path, arm=arm, kernels="reference"), plan)) <= TOLERANCE
    if arm != "none":
        assert error(got, run(load_stock(path)[0], plan)) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "bits", "options"),
    [
        *[(family, 4, {}) for family in ("llama", "qwen3", "gemma2", "gemma3_text", "openelm", "olmo2", "ministral3")],
        *[(family, bits, {}) for family in ("gpt2", "stablelm", "olmo") for bits in (None, 4)],
        ("stablelm", None, {"use_parallel_residual": True, "qk_layernorm": True}),
    ],
)
def test_five_launches_a_layer(
    family: str,
    bits: int | None,
    options: dict[str, Any],
    tmp_path: Path,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one for each table and the head; nothing that could have been computed at load time, no norm beside them."""
    model = fused(checkpoint(tmp_path / "m", family, bits, **options))
    launches: list[str] = []
    original = dialect.launch
    monkeypatch.setattr(
        dialect, "launch", lambda operation, *a, **k: launches.append(operation) or original(operation, *a, **k)
    )
    step = model._step
    caches = step.blank(1, KVCache.step)
    tails = [
        mx.zeros(b.heads.output_size(1, 1, default_layout(b.heads, c.capacity), mx.float32))
        for b, c in zip(step.blocks, caches, strict=True)
    ]
    turned = [(caches[i].capacity, step.blocks[i].rotation.dims // 2) for i in step.groups]
    rows = [mx.array(step_rows(0, 0, capacity, 1, np.zeros((1, 1, pairs)))) for capacity, pairs in turned]
    places = [mx.zeros((1, 1), mx.int32)] * len(model.tables)
    assert all(p.prepare is None for block in step.blocks for p in block.projections)
    step.run(places, rows, [c.buffer for c in caches], tails)
    block = ["project", "project", "attend"] if "use_parallel_residual" in options else ["project", "attend", "project"]
    assert launches == ["embed"] * len(places) + [*block, "project", "project"] * 2 + ["project"]
    for block in step.blocks:
        if block.gains is not None:
            mx.export_to_dot(str(tmp_path / "gains.dot"), block.gains)
            assert "Concatenate" not in (tmp_path / "gains.dot").read_text()


def test_trying_a_step_takes_one_layers_room(tmp_path: Path, device: str) -> None:
    """Its caches have one buffer for all layers, and nothing is written to it."""
    model = fused(checkpoint(tmp_path / "m", num_hidden_layers=3))
    step = model._step
    caches = step.blank(2, KVCache.step)
    assert len({id(c.buffer) for c in caches}) == 1 < len(caches)
    mx.eval(step(mx.ones((2, 1), mx.int32), caches))
    assert not mx.any(caches[0].buffer).item()


def test_a_batch(tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", "qwen3", 4)
    plan = [("prompt", 9), *[("step", 1)] * (PATIENCE + 3), ("trim", 3), *[("step", 2)] * (PATIENCE + 2)]
    model = fused(path)
    passes.clear()
    got = run(model, plan, batch=2)
    assert passes.count((2, 1)) >= 3 and passes.count((2, 2)) >= 2
    assert error(got, run(load_stock(path)[0], plan, batch=2)) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [None, 4])
def test_low_precision_is_no_worse_than_plain(bits: int | None, dtype: str, tmp_path: Path, device: str) -> None:
    """Judged against float32, as a root mean square over all logits."""
    path = checkpoint(tmp_path / "m", "qwen3", bits)
    plan = [("prompt", 9), *[("step", 1)] * 6]
    exact = run(load_model(path, dtype="float32", kernels="reference"), plan)

    def distance(outputs: list[mx.array]) -> float:
        assert all(str(a.dtype).endswith(dtype) for a in outputs)
        squares = [mx.mean(mx.square(a.astype(mx.float32) - b)) for a, b in zip(outputs[1:], exact[1:], strict=True)]
        return sum(squares).item() ** 0.5  # type: ignore[union-attr]

    plain = distance(run(load_model(path, dtype=dtype, kernels="reference"), plan))
    assert distance(run(fused(path, dtype=dtype), plan)) <= 1.2 * plain


def test_generation_and_speculation(tmp_path: Path, device: str, passes: list) -> None:
    """mlx-lm's own loops: greedy tokens are the same, also where drafts are made and taken back."""
    path = checkpoint(tmp_path / "m")
    plain, model = load_model(path, kernels="reference"), fused(path)
    passes.clear()
    prompt = tokens(7)[0]
    want = [token for token, _ in generate_step(prompt, plain, max_tokens=16)]
    assert [token for token, _ in generate_step(prompt, model, max_tokens=16)] == want
    assert passes.count((1, 1)) >= 15
    draft = load_model(checkpoint(tmp_path / "d", num_hidden_layers=1), kernels="reference")
    drafted = speculative_generate_step(prompt, model, draft, num_draft_tokens=2, max_tokens=14)
    assert [token for token, *_ in drafted] == want[:14]
    assert (1, 3) in passes


# ---- what the kernels are not for --------------------------------------------------------------------------------


def full_cache(model: Any, kind: Callable[[], Any], batch: int = 1) -> list:
    cache = [kind() for _ in model.layers]
    model(tokens(9, batch), cache=cache)
    return cache


def test_caches_that_are_left_to_plain_operations(tmp_path: Path, device: str, passes: list) -> None:
    model = fused(checkpoint(tmp_path / "m"))
    ids = tokens(1)
    want = model(ids, cache=full_cache(model, KVCache))
    passes.clear()
    rotating = full_cache(model, lambda: stock.RotatingKVCache(64))
    assert relative_error(model(ids, cache=rotating), want) <= TOLERANCE
    assert {type(c) for c in rotating} == {stock.RotatingKVCache}
    quantised = [c.to_quantized(32, 8) for c in full_cache(model, KVCache)]
    assert relative_error(model(ids, cache=quantised), want) <= 0.1
    uneven = full_cache(model, KVCache)
    uneven[1].trim(1)
    model(ids, cache=uneven)
    embedded = model.model.embed_tokens(ids)
    assert relative_error(model(None, cache=full_cache(model, KVCache), input_embeddings=embedded), want) <= TOLERANCE
    assert model(ids).shape == (1, 1, 331) and model(tokens(9), cache=full_cache(model, KVCache)).shape[1] == 9
    assert passes == []


@pytest.mark.parametrize("touched", [False, True])
def test_more_than_kernels_can_count_is_left_to_plain_operations(
    touched: bool, tmp_path: Path, device: str, passes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it comes to that: a buffer grows in the midst of steps, too."""
    path = checkpoint(tmp_path / "m")
    monkeypatch.setattr(decode, "COUNTABLE", 2 * 64 * 512)  # a buffer of 256 positions is half of it
    plan: list[Action] = [("prompt", 230), *[("step", 1)] * 40]
    model = fused(path)
    passes.clear()
    if touched:
        monkeypatch.setattr(DecodeStep, "goes_on", lambda *_: False)
    got = run(model, plan)
    assert len(passes) == (26 if touched else 32)  # 256 are in the buffer, and 6 more in the tail if nobody asks
    assert error(got[-16:], run(load_stock(path)[0], plan)[-16:]) <= rounding(path, plan, device)


def test_stock_caches_become_ours(tmp_path: Path, device: str, passes: list) -> None:
    model = fused(checkpoint(tmp_path / "m"))
    want = model(tokens(1), cache=full_cache(model, KVCache))
    cache = full_cache(model, stock.KVCache)
    copies = list(cache)
    passes.clear()
    assert relative_error(model(tokens(1), cache=cache), want) <= TOLERANCE
    assert passes == [(1, 1)] and [type(c) for c in cache] == [KVCache, KVCache]
    assert [c.offset for c in copies] == [10, 10]  # whoever else holds them sees the same
    assert [type(c) for c in model.make_cache()] == [KVCache, KVCache]
    passes.clear()
    mixed = [full_cache(model, KVCache)[0], full_cache(model, stock.KVCache)[1]]
    assert relative_error(model(tokens(1), cache=mixed), want) <= TOLERANCE
    assert passes == [(1, 1)] and [type(c) for c in mixed] == [KVCache, KVCache]


def test_a_cache_of_another_dtype_or_batch_is_left_to_plain_operations(
    tmp_path: Path, device: str, passes: list
) -> None:
    model, low = fused(checkpoint(tmp_path / "m")), load_model(tmp_path / "m", kernels="reference", dtype="bfloat16")
    cache = full_cache(low, KVCache)
    passes.clear()
    model(tokens(1), cache=cache)
    assert passes == []


def test_an_empty_cache_needs_no_prompt(tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", "qwen2")
    model, plan = fused(path), [("step", 1)] * 3
    passes.clear()
    got = run(model, plan)
    assert passes == [(1, 1)] * 3
    assert error(got, run(load_stock(path)[0], plan)) <= TOLERANCE


UNCOVERED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"head_dim": 40}, "a head_dim of 40"),
    ("llama", {"bits": 3}, "affine quantisation with 3 bits in groups of 32"),
    ("gemma2", {"hidden_size": 4128}, "a post-norm of 4128 numbers next to 32-bit weights"),
    ("llama", {"intermediate_size": 190}, "rows of 190 float32 weights, which are no multiple of 16 bytes"),
]


@pytest.mark.parametrize(("family", "options", "reason"), UNCOVERED)
def test_uncovered_models_say_why_and_still_run(
    family: str, options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "m", family, **options)
    model = load_model(path, kernels="reference")
    want = run(model, SHORT)
    with pytest.raises(Uncovered, match=reason):
        model.fuse()
    assert error(run(model, SHORT), want) == 0.0
    monkeypatch.setattr(loader, "backend", lambda: "metal")
    with pytest.raises(FlashNormError, match=f"no kernel for {reason}; use kernels='auto'"):
        load_model(path, kernels="fused")
    assert error(run(load_model(path), SHORT), want) == 0.0


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="there are kernels for this device")
def test_without_a_gpu_fused_kernels_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m")
    with pytest.raises(FlashNormError, match="fused kernels need a GPU, Metal or CUDA; use kernels='auto'"):
        load_model(path, kernels="fused")
    assert type(load_model(path).make_cache()[0]) is stock.KVCache
