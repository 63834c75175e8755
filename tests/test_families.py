"""What is particular to OLMo 2, Phi-3, Ministral 3 and yarn: every form, every part seen to matter, and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from decode_runs import checkpoint, error, fused, run
from kernel_runs import DEVICES, on_device
from mlx_lm.models.cache import BatchKVCache, QuantizedKVCache
from mlx_lm.utils import load_model as load_stock
from test_models import SCALED, SLIDING, TOLERANCE, YARN, ids_for, token_by_token

from flashnorm_mlx import FlashNormError, architectures
from flashnorm_mlx.architectures import ministral3, olmo2, phi3
from flashnorm_mlx.layers import attention, longrope, norm, rope, yarn

LONGROPE = phi3.TINY["rope_scaling"]
UNSCALED = {"rope_parameters": SCALED | {"llama_4_scaling_beta": 0.0}}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "rope_scaling": YARN}),
    ("phi3", {}),
    ("ministral3", {}),
    ("ministral3", SLIDING),
    ("llama", {"rope_scaling": YARN}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen3", {"rope_scaling": YARN}),
]


@pytest.fixture(autouse=True)
def fresh_rotations() -> Iterator[None]:
    """None that a broken function made is kept."""
    rope._rotation.cache_clear()
    yield
    rope._rotation.cache_clear()


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize(("family", "options"), FORMS)
def test_the_launches_that_a_gpu_takes(
    family: str, options: dict[str, Any], arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(family, **options)
    stock, weights = stock_with_weights(config)
    want = stock(ids_for(config))
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert relative_error(token_by_token(our_model(config, weights, arm), ids_for(config)), want) <= TOLERANCE


@pytest.mark.parametrize("length", [1, 3])
def test_left_padding_is_scaled_as_if_it_were_at_0(length: int) -> None:
    """Where stock takes the logarithm of 0, from which its padded rows never recover."""
    config = tiny_config("ministral3")
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), ids_for(config)
    cache = [BatchKVCache([0, 4]) for _ in model.layers]
    steps = [model(ids[:, i : i + length], cache=cache) for i in range(0, 21, length)]
    assert relative_error(mx.concatenate(steps, axis=1)[1:, 4:], stock(ids[1:, 4:])) <= TOLERANCE


# ---- negative controls: one part is wrong, and the comparison with stock must see it


def wrong(family: str, options: dict[str, Any], change: Callable[[], None]) -> float:
    """The error, cached, of a model that is made and run after ``change``."""
    config = tiny_config(family, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    want = stock(ids)
    change()
    return relative_error(token_by_token(our_model(config, weights), ids), want)


@pytest.mark.parametrize("family", ["olmo2", "phi3", "ministral3"])
def test_control_gain_convention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each norm in turn."""
    model_class = architectures.find(family).Model
    folds = model_class.FOLDS
    for i, declared in enumerate(folds):
        if declared.into:
            changed = (*folds[:i], replace(declared, plus_one=True), *folds[i + 1 :])
            assert wrong(family, {}, lambda c=changed: monkeypatch.setattr(model_class, "FOLDS", c)) > 1e-2  # type: ignore[misc]


def heads_of_their_own(self: Any, qk: mx.array, s: mx.array | None) -> mx.array:
    return attention.Attention._qk_norm(self, qk, s)


def one_norm_for_both(self: Any, qk: mx.array, s: mx.array | None) -> mx.array:
    scale = mx.rsqrt(mx.mean(mx.square(qk), axis=(1, 3), keepdims=True) + self.qk_norm_eps)
    return qk * scale


def shared_gain(self: Any) -> mx.array:
    one = self.q_norm["weight"][: self.head_dim]
    return mx.broadcast_to(one, (self.num_heads + self.num_kv_heads, 1, self.head_dim))


def no_swap(self: Any, base: rope.Tables, gain: mx.array) -> rope.Tables:
    return base[0] * gain, base[1] * gain


def unscaled(dims: int, base: float, scaling: Any) -> Any:
    return rope.inverse_frequencies(dims, base)


def by_short_factors(dims: int, base: float, scaling: dict[str, Any]) -> Any:
    return unscaled(dims, base, None) / np.array(scaling["short_factor"])


CONTROLS: list[tuple[str, dict[str, Any], Any, str, Any]] = [
    ("olmo2", {}, olmo2.Attention, "_qk_norm", heads_of_their_own),
    ("olmo2", {}, olmo2.Attention, "_qk_norm", one_norm_for_both),
    ("olmo2", {}, olmo2.Attention, "_qk_gain", shared_gain),
    ("olmo2", {}, rope.Rotation, "with_gain", no_swap),
    ("olmo2", {}, rope.Rotation, "with_gain", lambda self, base, gain: base),
    ("olmo2", {}, norm.PostNorm, "__call__", lambda self, p: p),
    ("phi3", {}, longrope, "rope_magnitude", lambda scaling: 1.0),
    ("phi3", {}, longrope, "inverse_frequencies", unscaled),
    ("phi3", {}, longrope, "inverse_frequencies", by_short_factors),
    ("phi3", {"rope_scaling": None}, phi3.Config, "rotary_dims", 32),
    ("ministral3", {}, ministral3.Config, "query_scale", (0.0, 8)),
    ("ministral3", {}, ministral3.Config, "query_scale", (0.4, 9)),
    ("ministral3", {}, ministral3.ScaledPositions, "query_tables", rope.Positions.tables),
    *[
        (family, {"rope_scaling": YARN}, yarn, name, value)
        for family in ("llama", "mistral", "qwen2", "qwen3", "olmo2")
        for name, value in (
            ("rope_magnitude", lambda scaling: 1.0),
            ("inverse_frequencies", unscaled),
        )
    ],
    ("ministral3", {"rope_parameters": SCALED | {"mscale_all_dim": 0.3}}, yarn, "rope_magnitude", lambda scaling: 1.0),
]


@pytest.mark.parametrize(
    ("family", "options", "owner", "name", "value"),
    CONTROLS,
    ids=[f"{c[0]}-{c[3]}-{i}" for i, c in enumerate(CONTROLS)],
)
def test_control(
    family: str, options: dict[str, Any], owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(family, options, lambda: monkeypatch.setattr(owner, name, value)) > 1e-3


def test_control_scale_that_forgets_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ministral3.ScaledPositions.query_tables.func

    def forgetful(self: Any) -> rope.Tables:
        c, _ = inner(ministral3.ScaledPositions(self.rotation, 0, self.length, self.beta, self.original))
        plain, _ = rope.tables(self.rotation, 0, self.length)
        ratio = c[..., :1] / plain[..., :1]
        return self.tables[0] * ratio, self.tables[1] * ratio

    monkeypatch.setattr(ministral3.ScaledPositions, "query_tables", property(forgetful))
    assert wrong("ministral3", {}, lambda: None) > 1e-3


# ---- fused kernels


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_device(request.param, check=False, seeds=(0,)) as name:
        if name == "harness":
            mx.disable_compile()
        yield name
        mx.enable_compile()


FUSED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": YARN}),
    ("qwen3", {"rope_scaling": YARN}),
    ("phi3", {"rope_scaling": {**LONGROPE, **{f"{x}_factor": 2 * LONGROPE[f"{x}_factor"] for x in ("long", "short")}}}),
    ("ministral3", UNSCALED),
]


@pytest.mark.parametrize(("family", "options"), FUSED, ids=[f for f, _ in FUSED])
def test_steps_by_kernels_are_stock_mlx_lms(family: str, options: dict[str, Any], tmp_path: Path, device: str) -> None:
    path = checkpoint(tmp_path / "m", family, **options)
    model = fused(path)
    plan = [("prompt", 9), *[("step", 1)] * 4]
    assert error(run(model, plan), run(load_stock(path)[0], plan)) <= TOLERANCE
    assert model.kernels == "fused"


def test_a_quantised_cache_behind_a_soft_cap_is_refused() -> None:
    """mlx-lm's own ends in a traceback."""
    config = tiny_config("gemma2", head_dim=32)
    model = our_model(config, stock_with_weights(config)[1])
    cache = [QuantizedKVCache(32, 8) for _ in model.layers]
    with pytest.raises(FlashNormError, match="quantised cache is not supported where scores have a soft cap"):
        model(mx.array([[1, 2, 3]]), cache=cache)


class Adding(BatchKVCache):
    """One that adds to its offset in place, as mlx-lm's has done."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        offset = self.offset
        found: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)
        offset += keys.shape[2]
        self.offset = offset
        return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_padded_rows_by_mlxs_own_rope(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where each layer's RoPE reads the offset itself, to which a batched cache may have added."""
    config = tiny_config(family)
    model = our_model(config, stock_with_weights(config)[1])
    ids = ids_for(config)

    def logits() -> list[mx.array]:
        cache = [Adding([0, 4]) for _ in model.layers]
        parts = [model(ids[:, :9], cache=cache), *(model(ids[:, i : i + 1], cache=cache) for i in range(9, 13))]
        return [y[0] for y in parts] + [y[1, -1:] for y in parts]

    want = logits()
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    for a, b in zip(logits(), want, strict=True):
        assert relative_error(a, b) <= 2e-5
