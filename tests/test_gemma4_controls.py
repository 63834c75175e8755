"""What would be wrong with Gemma 4's text model, done on purpose: the comparison with stock must see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config
from test_gemma4 import FAMILY, MOE
from test_models import TOLERANCE, ids_for

from flashnorm_mlx import fold
from flashnorm_mlx.architectures import gemma4_text
from flashnorm_mlx.architectures.gemma4_block import Block
from flashnorm_mlx.layers import moe, norm, proportional, rope, routed
from flashnorm_mlx.layers.qkv_norm import QKVNormAttention
from flashnorm_mlx.plan import Fold

SEEN = 1e-3


def error(config: dict[str, Any], *, tiny: bool = False, **dropped: float) -> float:
    """Of this package's model, relative to stock's; tensors whose names end in a key of ``dropped`` get that value."""
    stock, weights = stock_with_weights(config)
    if tiny:  # residuals of RMS 1e-4 and below, where ε counts
        weights = {k: v * 1e-4 if "embed_tokens." in k or ".post_" in k else v for k, v in weights.items()}
        stock.load_weights(list(weights.items()))
    ids = ids_for(config)
    ours = dict(weights)
    for end, value in dropped.items():
        ours |= {k: mx.full(v.shape, value) for k, v in weights.items() if end in k}
    return relative_error(our_model(config, ours)(ids), stock(ids))


@pytest.mark.parametrize("options", [{}, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_small_residuals_where_eps_matters(
    eps: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ε/s² is exact; ε kept, or taken for 0, as if nothing were left of the first norm, is not."""
    config = tiny_config(FAMILY, rms_norm_eps=eps, **options)
    assert error(config, tiny=True) <= TOLERANCE
    for wrong in (lambda eps, scale: eps, lambda eps, scale: 1e-30):
        monkeypatch.setattr(fold, "cancelled_eps", wrong)
        assert error(config, tiny=True) > SEEN


def test_eps_of_nothing_at_ordinary_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where residuals are of ordinary size, the first norm leaves next to nothing."""
    monkeypatch.setattr(fold, "cancelled_eps", lambda eps, scale: 1e-30)
    assert error(tiny_config(FAMILY)) <= 2 * TOLERANCE


FOLDED = {n: tiny_config(FAMILY, **o) for n, o in (("dense", {"tie_word_embeddings": False}), ("experts", MOE))}


def folds_of(name: str) -> tuple[Fold, ...]:
    return gemma4_text.Model(gemma4_text.Config.from_dict(FOLDED[name])).folds


KINDS = [(name, i) for name in FOLDED for i, f in enumerate(folds_of(name)) if f.into]
MISSED = [(name, i, c) for name, i in KINDS for c in folds_of(name)[i].into if len(folds_of(name)[i].into) > 1]


def with_fold(monkeypatch: pytest.MonkeyPatch, name: str, i: int, **changes: Any) -> None:
    folds = folds_of(name)
    changed = (*folds[:i], replace(folds[i], **changes), *folds[i + 1 :])
    monkeypatch.setattr(gemma4_text.Model, "folds", property(lambda self: changed))


@pytest.mark.parametrize(("name", "i"), KINDS)
def test_gains_of_one_plus_w(name: str, i: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 1 to 3 store a gain less 1, this one doesn't."""
    with_fold(monkeypatch, name, i, plus_one=True)
    assert error(FOLDED[name]) > SEEN


@pytest.mark.parametrize(("name", "i", "consumer"), MISSED)
def test_missed_consumer(name: str, i: int, consumer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fold(monkeypatch, name, i, into=tuple(c for c in folds_of(name)[i].into if c != consumer))
    assert error(FOLDED[name]) > SEEN


NORMED = QKVNormAttention._normed


def values_not_normed(self: Any, y: mx.array, s: mx.array) -> mx.array:
    parts = NORMED(self, y, s)[:, : -self.num_kv_heads], norm.settled(y, s[:, None])[:, -self.num_kv_heads :]
    return NORMED(self, y, s) if self.shares else mx.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    "wrong",
    [values_not_normed, lambda self, y, s: norm.settled(NORMED(self, y, s), s[:, None]), lambda self, y, s: y],
    ids=["v_norm left out", "scale applied besides", "scale left out, and no norm"],
)
def test_scale_that_does_not_cancel(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QKVNormAttention, "_normed", wrong)
    assert error(tiny_config(FAMILY, attention_k_eq_v=False)) > SEEN


def test_keys_and_values_of_the_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's of a kind in place of the last's."""
    inner = Block.attend

    def wrong(self: Any, qkv: Any, seen: Any, cache: Any) -> Any:
        first = seen.kv
        a = inner(self, qkv, seen, cache)
        seen.kv = first or seen.kv
        return a

    monkeypatch.setattr(Block, "attend", wrong)
    assert error(tiny_config(FAMILY)) > SEEN


@pytest.mark.parametrize("name", ["layer_scalar", "router.scale", "per_expert_scale", "q_norm", "k_norm"])
def test_gain_or_scalar_dropped(name: str) -> None:
    assert error(tiny_config(FAMILY, **MOE), **{name: 1.0}) > SEEN


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (Block, "layer_input", lambda self, h, p: mx.zeros_like(h)),
        (rope.Rotation, "with_gain", lambda self, base, gain: (base[0] * gain, base[1] * gain)),
        (proportional, "inverse_frequencies", lambda dims, base, scaling: rope.inverse_frequencies(dims, base)),
    ],
    ids=["inputs of layers", "gain not swapped", "full rotation"],
)
def test_left_out(owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, wrong)
    assert error(tiny_config(FAMILY)) > SEEN


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (routed, "settled", lambda y, s: y),
        (moe.Experts, "gate_up", lambda self, x, s, route, inner=moe.Experts.gate_up: inner(self, x, None, route)),
    ],
    ids=["router", "experts"],
)
def test_scale_dropped_beside_the_mlp(owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, wrong)
    assert error(tiny_config(FAMILY, **MOE)) > SEEN
