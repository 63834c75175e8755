"""Whole decode steps of the families that ask more of the kernels than Llama does, and what must not be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import relative_error
from decode_runs import SHORT, TOLERANCE, Action, checkpoint, error, fused, run, tokens
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as load_stock
from test_models import SCALED

from flashnorm_mlx.engine import decode
from flashnorm_mlx.engine.decode import PATIENCE, DecodeStep
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.kernels.attend import Heads
from flashnorm_mlx.layers.fused import FusedBlock
from flashnorm_mlx.layers.prompt import PromptBlock
from flashnorm_mlx.loader import load_model

#: One token at a time and three, there and back.
PLAN: list[Action] = [*SHORT, *[("step", 3)] * (PATIENCE + 2), ("trim", 5), ("step", 1)]
#: The same past the 32 tokens of the tail.
LONG: list[Action] = [("prompt", 9), *[("step", 1)] * 36, *PLAN[5:], ("trim", 40), ("step", 1)]

PARALLEL = {"use_parallel_residual": True}
HEAD_NORMS = {"qk_layernorm": True}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

CASES: list[tuple[str, dict[str, Any], str, int | None, list[Action]]] = [
    ("olmo2", UNTIED, "flashnorm", None, LONG),
    ("olmo2", TIED, "flashnorm", 4, PLAN),
    ("olmo2", UNTIED, "none", 8, SHORT),
    ("olmo2", {"attention_bias": True, "mlp_bias": True, **TIED}, "baseline", None, SHORT),
    ("ministral3", UNTIED, "flashnorm", None, LONG),
    ("ministral3", TIED, "flashnorm", 4, PLAN),
    ("ministral3", LOCAL, "none", 8, SHORT),
    ("gpt2", {}, "flashnorm", None, LONG),
    ("gpt2", {}, "none", None, PLAN),
    ("gpt2", {}, "flashnorm", 4, SHORT),
    ("gpt2", {}, "none", 8, SHORT),
    ("gpt2", {}, "baseline", None, SHORT),
    ("stablelm", {}, "flashnorm", None, LONG),
    ("stablelm", {"use_qkv_bias": False}, "none", None, SHORT),
    ("stablelm", {}, "flashnorm", 8, SHORT),
    ("stablelm", PARALLEL, "flashnorm", None, PLAN),
    ("stablelm", HEAD_NORMS, "flashnorm", None, PLAN),
    ("stablelm", {**HEAD_NORMS, **PARALLEL, "partial_rotary_factor": 1.0}, "flashnorm", 4, SHORT),
    ("stablelm", {**HEAD_NORMS, **PARALLEL}, "none", None, SHORT),
    ("stablelm", PARALLEL, "baseline", None, SHORT),
    ("olmo", {"weight_tying": False}, "flashnorm", None, LONG),
    ("olmo", {"weight_tying": True}, "flashnorm", None, PLAN),
    ("olmo", {"weight_tying": True}, "none", None, SHORT),
    ("olmo", {"weight_tying": False}, "flashnorm", 4, SHORT),
    ("olmo", {"weight_tying": True}, "baseline", 8, SHORT),
]


@pytest.mark.parametrize(("family", "options", "arm", "bits", "plan"), CASES)
def test_steps_are_the_models_own_and_stock_mlx_lms(
    family: str,
    options: dict[str, Any],
    arm: str,
    bits: int | None,
    plan: list[Action],
    tmp_path: Path,
    device: str,
    passes: list,
) -> None:
    """Quantised LayerNorm families keep their LayerNorms, by an operation of its own in front of the kernel."""
    path = checkpoint(tmp_path / "m", family, bits, **options)
    model = fused(path, arm=arm)
    passes.clear()
    got = run(model, plan)
    assert passes.count((1, 1)) == plan.count(("step", 1))
    assert plan is SHORT or passes.count((1, 3)) >= 2
    assert error(got, run(load_model(path, arm=arm, kernels="reference"), plan)) <= TOLERANCE
    if arm != "none" and family != "olmo":  # mlx-lm's olmo takes one token at a time
        assert error(got, run(load_stock(path)[0], plan)) <= TOLERANCE


def test_olmo_token_by_token_is_stock_mlx_lms(tmp_path: Path, device: str) -> None:
    path, plan = checkpoint(tmp_path / "m", "olmo", weight_tying=False), [("step", 1)] * 6
    assert error(run(fused(path), plan), run(load_stock(path)[0], plan)) <= TOLERANCE


@pytest.mark.parametrize("family", ["olmo2", "gpt2", "ministral3"])
def test_a_batch(family: str, tmp_path: Path, device: str, passes: list) -> None:
    path = checkpoint(tmp_path / "m", family)
    plan = [("prompt", 9), *[("step", 1)] * (PATIENCE + 2), *[("step", 2)] * (PATIENCE + 2)]
    model = fused(path)
    passes.clear()
    got = run(model, plan, batch=2)
    assert passes.count((2, 1)) >= 2 and passes.count((2, 2)) >= 2
    assert error(got, run(load_stock(path)[0], plan, batch=2)) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("family", "options"), [("olmo2", {}), ("gpt2", {}), ("stablelm", HEAD_NORMS), ("olmo", {})])
def test_low_precision_is_no_worse_than_plain(
    family: str, options: dict[str, Any], dtype: str, tmp_path: Path, device: str
) -> None:
    path, plan = checkpoint(tmp_path / "m", family, **options), [("prompt", 9), *[("step", 1)] * 6]
    exact = run(load_model(path, dtype="float32", kernels="reference"), plan)

    def distance(outputs: list[mx.array]) -> float:
        assert all(str(a.dtype).endswith(dtype) for a in outputs)
        squares = [mx.mean(mx.square(a.astype(mx.float32) - b)) for a, b in zip(outputs[1:], exact[1:], strict=True)]
        return sum(squares).item() ** 0.5  # type: ignore[union-attr]

    plain = distance(run(load_model(path, dtype=dtype, kernels="reference"), plan))
    assert distance(run(fused(path, dtype=dtype), plan)) <= 1.2 * plain


def test_gpt2_past_its_last_position(tmp_path: Path, device: str, passes: list) -> None:
    """Its last position is used, and nothing behind the table is read."""
    path = checkpoint(tmp_path / "m", "gpt2", n_positions=12)
    model, plan = fused(path), [("prompt", 9), *[("step", 1)] * 3]
    passes.clear()
    assert error(run(model, plan), run(load_stock(path)[0], plan)) <= TOLERANCE
    assert passes == [(1, 1)] * 3
    cache = make_prompt_cache(model)
    model(tokens(12), cache=cache)
    with pytest.raises(FlashNormError, match="13 tokens long, and the model has 12 positions"):
        model(tokens(1), cache=cache)


@pytest.mark.parametrize(
    ("family", "arm", "options", "blocks"),
    [
        *[("olmo2", "flashnorm", {}, 2), ("olmo", "flashnorm", {}, 2), ("stablelm", "flashnorm", HEAD_NORMS, 2)],
        *[("gpt2", "flashnorm", {}, 0), ("stablelm", "flashnorm", PARALLEL, 0), ("olmo", "baseline", {}, 0)],
    ],
)
def test_prompts_are_the_models_own(
    family: str,
    arm: str,
    options: dict[str, Any],
    blocks: int,
    tmp_path: Path,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a form for many tokens, or where there is none, as they are."""
    made: list[Any] = []
    original = PromptBlock.behind
    monkeypatch.setattr(PromptBlock, "behind", lambda *a: made.append(1) or original(*a))
    path, plan = checkpoint(tmp_path / "m", family, **options), [("prompt", 9), ("step", 1), ("prompt", 12)]
    got = run(fused(path, arm=arm), plan)
    assert len(made) == 2 * blocks
    assert error(got, run(load_model(path, arm=arm, kernels="reference"), plan)) <= TOLERANCE


# ---- negative controls -------------------------------------------------------------------------------------------


def without_biases(name: str) -> Callable[[Any], None]:
    def change(step: DecodeStep) -> None:
        projection = getattr(step.blocks[0], name, None) or step.head
        assert projection.packed.bias
        projection.packed = replace(projection.packed, bias=False)

    return change


def without_gains(step: DecodeStep) -> None:
    for block in step.blocks:
        block.gains = mx.ones_like(block.gains)


def without_an_activation(step: DecodeStep) -> None:
    step.blocks[0].gate_up.activation = None


def with_heads(**changes: Any) -> Callable[[Any], None]:
    def change(step: DecodeStep) -> None:
        for part in [*step.blocks, *step.rows]:
            part.heads = replace(part.heads, **changes)

    return change


CONTROLS: list[tuple[str, dict[str, Any], Callable[[Any], None]]] = [
    ("olmo2", {}, without_gains),
    ("olmo2", {}, with_heads(qk_norm="head")),
    ("olmo2", {}, with_heads(qk_norm="layer")),
    ("stablelm", HEAD_NORMS, without_gains),
    ("stablelm", HEAD_NORMS, with_heads(qk_norm="head")),
    ("stablelm", HEAD_NORMS, with_heads(qk_norm="all")),
    ("gpt2", {}, without_an_activation),
    *[("gpt2", {}, without_biases(name)) for name in ("qkv", "o", "gate_up", "down", "head")],
    *[("stablelm", {}, without_biases(name)) for name in ("qkv", "gate_up", "head")],
    ("ministral3", {}, with_heads(growth=None)),
    ("ministral3", {}, with_heads(growth=(0.3, 8.0))),
]


@pytest.mark.parametrize(("family", "options", "change"), CONTROLS)
def test_control_what_is_left_out_is_seen(
    family: str, options: dict[str, Any], change: Callable[[Any], None], tmp_path: Path, device: str
) -> None:
    path = checkpoint(tmp_path / "m", family, **options)
    model = fused(path)
    change(model._step)
    model._step.compiled = mx.compile(model._step.run)  # what was traced before knows nothing of the change
    assert error(run(model, SHORT), run(load_stock(path)[0], SHORT)) > 1e-3


@pytest.mark.parametrize("wrong", ["left out", "one further", "of the first row"])
def test_control_other_positions_are_seen(
    wrong: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = decode.embed

    def embed(ids: mx.array, w: Any, *, residual: mx.array | None = None, **options: Any) -> mx.array:
        if residual is None or wrong == "left out":
            return original(ids, w, **options) if residual is None else residual
        return original(ids + 1 if wrong == "one further" else 0 * ids, w, residual=residual)

    path = checkpoint(tmp_path / "m", "gpt2")
    monkeypatch.setattr(decode, "embed", embed)
    assert error(run(fused(path), SHORT), run(load_stock(path)[0], SHORT)) > 1e-3


def test_control_a_block_that_is_not_parallel(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "m", "stablelm", **PARALLEL)
    model = fused(path)
    for block in model._step.blocks:
        monkeypatch.setattr(type(block), "__call__", FusedBlock.__call__)
    model._step.compiled = mx.compile(model._step.run)
    assert error(run(model, SHORT), run(load_stock(path)[0], SHORT)) > 1e-3


def test_queries_grow_in_steps() -> None:
    heads = Heads(2, 1, 64, scale=1.0, rotary_dims=64, growth=(0.4, 8.0))
    got = mx.array(heads.query_factors(np.arange(24, dtype=np.float32)))
    assert relative_error(got, 1 + 0.4 * mx.log(1 + mx.arange(24) // 8)) <= 1e-6
    assert SCALED["llama_4_scaling_beta"] == 0.4 and SCALED["original_max_position_embeddings"] == 8
