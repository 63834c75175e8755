"""GPT-2, StableLM and OLMo against stock mlx-lm and float64, in all arms; and what happens where a fold is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import our_model, relative_error
from layer_norms import FAMILIES, IDS, OPTIONS, TOLERANCE, ids_for, model_of, token_by_token, wanted
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

from flashnorm_mlx import FlashNormError, architectures, fold
from flashnorm_mlx.layers import norm
from flashnorm_mlx.layers.layernorm import LayerNorm


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=IDS)
def test_logits_are_stock_mlx_lms(family: str, options: dict[str, Any], arm: str) -> None:
    config, stock, weights = model_of(family, **options)
    ids = ids_for(config)
    want = wanted(config, stock, ids)
    for pack in (False, True):
        model = our_model(config, weights, arm, pack=pack)
        assert relative_error(model(ids), want) <= TOLERANCE
    assert relative_error(token_by_token(model, ids), want) <= TOLERANCE
    norms = [m for _, m in model.named_modules() if isinstance(m, LayerNorm)]
    assert bool(norms) == (arm == "baseline")


@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=IDS)
def test_deferred_and_weightless_are_one_value(
    family: str, options: dict[str, Any], defer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "deferring_pays", lambda a: defer)
    config, stock, weights = model_of(family, **options)
    ids = ids_for(config)
    got = token_by_token(our_model(config, weights), ids)
    assert relative_error(got, wanted(config, stock, ids)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_centred_and_stocks_are_not(family: str) -> None:
    """The mean is gone behind every block, and would not be by itself."""
    config, _, weights = model_of(family)
    ids = ids_for(config)
    shares = []
    for arm in ("baseline", "flashnorm"):
        model, share = our_model(config, weights, arm), []
        h = model.opened(ids, None, [None] * 3)
        context = model.context(h, [None] * 3)
        for layer in model.layers:
            h = layer(h, *context[layer.kind])
            share.append((mx.max(mx.abs(mx.mean(h, axis=-1))) / mx.sqrt(mx.mean(mx.square(h)))).item())
        shares.append(share)
    assert min(shares[0]) > 0.1
    assert max(shares[1]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_arm_is_wrong_and_finite(family: str) -> None:
    config, stock, weights = model_of(family)
    ids = ids_for(config)
    none = our_model(config, weights, "none")(ids)
    assert mx.all(mx.isfinite(none)).item()
    assert relative_error(none, wanted(config, stock, ids)) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "stablelm"])
def test_batched_cache_with_offsets_a_row(family: str) -> None:
    config, stock, weights = model_of(family)
    model, ids, outputs = our_model(config, weights), ids_for(config), []
    for m in (stock, model):
        cache = [BatchKVCache([0, 4]) for _ in m.layers]
        outputs.append([m(ids, cache=cache)[:, 4:], m(ids[:, :1], cache=cache)])
    (want, want_next), (got, got_next) = outputs
    assert relative_error(got, want) <= TOLERANCE
    assert relative_error(got_next, want_next) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_cache(family: str) -> None:
    """Ours runs on one in every family; mlx-lm's stablelm does not, and its olmo sees no prompt."""
    sizes = {"d_model": 64, "n_heads": 2} if family == "olmo" else {"n_embd": 64, "n_head": 2}
    if family == "stablelm":
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config, _, weights = model_of(family, **sizes)
    model, ids = our_model(config, weights), ids_for(config)
    cache = make_prompt_cache(model)
    model(ids, cache=cache)
    rounded = [c.to_quantized(group_size=32, bits=8) for c in cache]
    assert relative_error(model(ids[:, :1], cache=rounded), model(ids[:, :1], cache=cache)) <= 2e-2


def test_stablelms_scores_that_overflow_float16() -> None:
    config, stock, weights = model_of("stablelm")
    low = {k: (v * 100 if "q_proj" in k or "k_proj" in k else v).astype(mx.float16) for k, v in weights.items()}
    stock.load_weights(list(low.items()))
    ids = ids_for(config)
    assert mx.all(mx.isfinite(stock(ids))).item()
    assert mx.all(mx.isfinite(our_model(config, low)(ids))).item()


def test_gpt2_past_its_last_position() -> None:
    """mlx-lm reads what lies behind the table there."""
    config, _, weights = model_of("gpt2", n_positions=8)
    model = our_model(config, weights)
    cache = make_prompt_cache(model)
    model(ids_for(config, 1, 8), cache=cache)
    for ids, c in ((ids_for(config, 1, 9), None), (ids_for(config, 1, 1), cache)):
        with pytest.raises(FlashNormError, match="9 tokens long, and the model has 8 positions"):
            model(ids, cache=c)


def gpt2_in_float64(weights: dict[str, mx.array], ids: np.ndarray, heads: int, eps: float) -> np.ndarray:
    """GPT-2 as its paper and code have it, ``x W + b`` with ``W [in, out]``; one sequence."""
    w = {k.removeprefix("model."): np.array(v).astype(np.float64) for k, v in weights.items()}

    def layer_norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    n = len(ids)
    x = w["wte.weight"][ids] + w["wpe.weight"][:n]
    for i in range(sum(name.endswith(".ln_1.bias") for name in w)):
        q, k, v = (
            p.reshape(n, heads, -1) for p in np.split(linear(layer_norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, -1)
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        a = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + linear(a, f"h.{i}.attn.c_proj")
        u = linear(layer_norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + linear(gelu, f"h.{i}.mlp.c_proj")
    return layer_norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
def test_gpt2_is_the_published_model(arm: str) -> None:
    config, _, weights = model_of("gpt2")
    ids = ids_for(config, 1)
    want = gpt2_in_float64(weights, np.array(ids[0]), config["n_head"], config["layer_norm_epsilon"])
    assert relative_error(our_model(config, weights, arm)(ids)[0], mx.array(want.astype(np.float32))) <= TOLERANCE


# negative controls: each breaks the fold on purpose, and the comparison above must see it


def broken_error(family: str, **options: Any) -> float:
    config, stock, weights = model_of(family, **options)
    ids = ids_for(config)
    return relative_error(our_model(config, weights)(ids), wanted(config, stock, ids))


PARALLEL = {"use_parallel_residual": True}


@pytest.mark.parametrize(
    ("family", "writer"), [(f, w) for f in FAMILIES for w in range(len(architectures.find(f).WRITERS))]
)
def test_control_one_writer_not_centred(family: str, writer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model_class = architectures.find(family).Model
    writers = model_class.WRITERS
    monkeypatch.setattr(model_class, "WRITERS", writers[:writer] + writers[writer + 1 :])
    assert broken_error(family) > 1e-3, writers[writer]


def test_control_bias_of_a_writer_not_centred(monkeypatch: pytest.MonkeyPatch) -> None:
    centring = fold.fold_centring
    monkeypatch.setattr(fold, "fold_centring", lambda w, b=None: (centring(w)[0], b))
    assert broken_error("gpt2") > 1e-3


@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("stablelm", {}), ("stablelm", PARALLEL)])
def test_control_bias_of_the_norm_forgotten(
    family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "fold_bias", lambda weight, beta, bias=None: bias)
    assert broken_error(family, **options) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "stablelm"])
def test_control_bias_folded_with_the_folded_weight(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: mx.array, bias: mx.array | None, gain: mx.array, beta: mx.array) -> tuple[mx.array, mx.array]:
        folded = fold.fold_gain(weight, gain)
        return folded, fold.fold_bias(folded, beta, bias)

    monkeypatch.setattr(fold, "fold_affine", wrong)
    assert broken_error(family) > 1e-3


@pytest.mark.parametrize("options", [{}, PARALLEL], ids=["sequential", "parallel"])
def test_control_missed_consumer(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several consumers, left out in turn: gain and bias are lost for it, and seen to be."""
    model_class = architectures.find("stablelm").Model
    folds = model_class.FOLDS
    for i, declared in enumerate(folds):
        for consumer in declared.into if len(declared.into) > 1 else ():
            fewer = replace(declared, into=tuple(c for c in declared.into if c != consumer))
            monkeypatch.setattr(model_class, "FOLDS", (*folds[:i], fewer, *folds[i + 1 :]))
            assert broken_error("stablelm", **options) > 1e-3, consumer


def test_control_tied_head_shares_the_centred_table() -> None:
    """Right for OLMo, whose norm has neither gain nor bias; wrong for GPT-2."""
    config, stock, weights = model_of("gpt2")
    model, ids = our_model(config, weights), ids_for(config)
    gain = weights["model.ln_f.weight"]
    model.lm_head.weight = fold.fold_gain(model.model.wte.weight, gain)
    assert relative_error(model(ids), stock(ids)) > 1e-3


def test_control_scale_after_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, a: mx.array, *layers: Any) -> Any:
        y, bias = norm.products(layers, a), norm.bias_of(layers)
        return (y if bias is None else y + bias), fold.inverse_rms(a, self.eps)

    monkeypatch.setattr(norm.FlashNorm, "__call__", wrong)
    assert broken_error("gpt2") > 1e-2
