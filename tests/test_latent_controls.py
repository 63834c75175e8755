"""What would be wrong with latent attention and experts, done on purpose: the comparison with stock must see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from latent_checkpoints import hugging_face, with_tiny_residuals
from test_models import TOLERANCE, ids_for

from flashnorm_mlx import architectures, fold
from flashnorm_mlx.architectures import deepseek_v2
from flashnorm_mlx.layers import latent, moe, norm, rope, yarn
from flashnorm_mlx.plan import Fold, Step

FAMILIES = ("deepseek_v2", "deepseek_v3")
LITE = {"q_lora_rank": None}
SEEN = 1e-3


def error(config: dict[str, Any], *, tiny_residuals: bool = False, one_by_one: bool = False) -> float:
    """Of this package's model, relative to stock's; ``one_by_one``: experts are loaded as Hugging Face stores them."""
    stock, weights = stock_with_weights(config)
    weights = with_tiny_residuals(weights) if tiny_residuals else weights
    stock.load_weights(list(weights.items()))
    ids = ids_for(config)
    return relative_error(our_model(config, hugging_face(weights) if one_by_one else weights)(ids), stock(ids))


def folds_of(config: dict[str, Any]) -> tuple[Fold, ...]:
    family = architectures.find(config["model_type"])
    return family.Model(family.Config.from_dict(config)).folds


def with_folds(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], i: int, **changes: Any) -> None:
    """One of a model's declared norms, declared otherwise."""
    folds = folds_of(config)
    changed = (*folds[:i], replace(folds[i], **changes), *folds[i + 1 :])
    monkeypatch.setattr(architectures.find(config["model_type"]).Model, "folds", property(lambda self: changed))


CONFIGS = {f"{f}-{n}": tiny_config(f, **o) for f in FAMILIES for n, o in (("full", {}), ("lite", LITE))}
FOLDS = [(name, i, fold) for name, config in CONFIGS.items() for i, fold in enumerate(folds_of(config))]
MISSED = [(name, i, c) for name, i, fold in FOLDS for c in fold.into if len(fold.into) > 1]


def ident(value: object) -> str | None:
    return value.norm.rpartition(".")[2] if isinstance(value, Fold) else None


@pytest.mark.parametrize(("name", "i", "consumer"), MISSED)
def test_missed_consumer(name: str, i: int, consumer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every consumer of every norm, router and experts among them, left out in turn."""
    into = tuple(c for c in folds_of(CONFIGS[name])[i].into if c != consumer)
    with_folds(monkeypatch, CONFIGS[name], i, into=into)
    assert error(CONFIGS[name]) > SEEN


@pytest.mark.parametrize(("name", "i", "fold"), FOLDS, ids=ident)
def test_wrong_gain(name: str, i: int, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every norm, the latents' among them, in the other convention."""
    with_folds(monkeypatch, CONFIGS[name], i, plus_one=True)
    assert error(CONFIGS[name]) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_not_folded(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(family)
    assert error(config, one_by_one=True) <= TOLERANCE
    model_class = architectures.find(family).Model
    inner = model_class.stored_as
    monkeypatch.setattr(
        model_class,
        "stored_as",
        lambda self, *a, **k: tuple(n for n in inner(self, *a, **k) if ".experts.5.up_" not in n),
    )
    assert error(config, one_by_one=True) > SEEN


@pytest.mark.parametrize("options", [{}, LITE], ids=["full", "lite"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropped", ["k_pe", "q_pe"])
def test_scale_dropped_in_ropes_tables(
    dropped: str, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = rope.Positions.rotate

    def rotate(self: Any, x: mx.array, scale: mx.array | None) -> mx.array:
        return inner(self, x, None if (x.shape[1] == 1) == (dropped == "k_pe") else scale)

    monkeypatch.setattr(rope.Positions, "rotate", rotate)
    assert error(tiny_config(family, **options)) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_dropped_where_there_is_no_query_latent(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = latent.settled
    monkeypatch.setattr(latent, "settled", lambda y, s: y if s is not None and s.ndim == 4 else inner(y, s))
    assert error(tiny_config(family, **LITE)) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_dropped_in_front_of_the_router(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "settled", lambda y, s: y)
    assert error(tiny_config(family)) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_dropped_in_the_experts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = moe.Experts.gate_up
    monkeypatch.setattr(moe.Experts, "gate_up", lambda self, x, s, route: inner(self, x, None, route))
    assert error(tiny_config(family)) > SEEN


@pytest.mark.parametrize("options", [{}, LITE], ids=["full", "lite"])
@pytest.mark.parametrize("family", FAMILIES)
def test_eps_kept_after_cancelling(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(family, **options)
    assert error(config, tiny_residuals=True) <= TOLERANCE
    monkeypatch.setattr(fold, "cancelled_eps", lambda eps, scale: eps)
    assert error(config, tiny_residuals=True) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configs_eps_in_the_latents_norms(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(family, rms_norm_eps=1e-2)
    assert error(config) <= TOLERANCE
    monkeypatch.setattr(deepseek_v2, "LATENT_EPS", 1e-2)
    assert error(config) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_after_the_bias(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, a: mx.array, *layers: Any, owed: mx.array | None = None) -> Any:
        x, s = self.factors(a, owed)
        y, bias = norm.products(layers, x), norm.bias_of(layers)
        return (y if bias is None else y + bias), s

    monkeypatch.setattr(norm.FlashNorm, "__call__", wrong)
    assert error(tiny_config(family, attention_bias=True)) > SEEN


def test_halves_of_kv_b_proj_folded_along_one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("deepseek_v3", qk_nope_head_dim=48)
    assert error(config) <= TOLERANCE
    monkeypatch.setattr(Step, "axis", lambda self, consumer: -1)
    assert error(config) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_experts_ignored(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"deepseek_v2": "group_limited_greedy", "deepseek_v3": "noaux_tc"}[family]
    config = tiny_config(family, topk_method=method, n_group=4, topk_group=2)
    assert error(config) <= TOLERANCE
    monkeypatch.setattr(moe.Router, "grouped", lambda self, scores: None)
    assert error(config) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_yarn_without_its_magnitudes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yarn, "magnitude", lambda factor, mscale: 1.0)
    assert error(tiny_config(family)) > SEEN


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_rotated_in_place_of_neighbours(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashnorm_mlx.layers import rope

    original = rope.Rotation.__init__
    monkeypatch.setattr(rope.Rotation, "__init__", lambda self, *a, traditional, **k: original(self, *a, **k))
    assert error(tiny_config(family)) > SEEN
