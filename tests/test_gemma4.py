"""Gemma 4's text model against stock mlx-lm: every option, every cache; and in low precision."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_model, stock_with_weights, tiny_config
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, make_prompt_cache
from test_models import TOLERANCE, ids_for, token_by_token

from flashnorm_mlx import FlashNormError
from flashnorm_mlx.architectures import gemma4_text
from flashnorm_mlx.architectures.base import named_arrays
from flashnorm_mlx.architectures.gemma4_config import GLOBAL, LOCAL
from flashnorm_mlx.layers import norm, proportional, rope

FAMILY = "gemma4_text"
MOE = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 40}
ROPES = {
    GLOBAL: {"rope_type": "proportional", "rope_theta": 5e5, "partial_rotary_factor": 0.4, "factor": 2.0},
    LOCAL: {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
}

OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "values of their own": {"attention_k_eq_v": False},
    "one number of heads": {"num_global_key_value_heads": None},
    "nothing shared": {"num_kv_shared_layers": 0},
    "half shared": {"num_kv_shared_layers": 3},
    "single width": {"use_double_wide_mlp": False},
    "no inputs of each layer": {"hidden_size_per_layer_input": 0},
    "larger table of inputs": {"vocab_size_per_layer_input": 340},
    "strong cap": {"final_logit_softcapping": 2.0},
    "no cap": {"final_logit_softcapping": None},
    "one head size": {"global_head_dim": None},
    "other ropes": {"rope_parameters": ROPES},
    "pattern": {"layer_types": None, "sliding_window_pattern": 3, "sliding_window": 4},
    "all local": {"layer_types": [LOCAL] * 6},
    "all global": {"layer_types": [GLOBAL] * 6},
    "odd sizes": {"hidden_size": 84, "intermediate_size": 111, "num_attention_heads": 3, "num_key_value_heads": 1},
    "experts": MOE,
    "experts, untied, no inputs": MOE | {"tie_word_embeddings": False, "hidden_size_per_layer_input": 0},
    "large eps": {"rms_norm_eps": 1e-2},
}


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_stock_mlx_lms(name: str, arm: str) -> None:
    config = tiny_config(FAMILY, **OPTIONS[name])
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    want = stock(ids)
    for pack in (False, True):
        model = our_model(config, weights, arm, pack=pack)
        assert relative_error(model(ids), want) <= TOLERANCE
    assert relative_error(token_by_token(model, ids), want) <= TOLERANCE


@pytest.mark.parametrize("options", [{}, MOE, {"tie_word_embeddings": False}], ids=["tied", "experts", "untied"])
@pytest.mark.parametrize("defer", [True, False])
def test_deferred_and_weightless_are_one_value(
    defer: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "deferring_pays", lambda a: defer)
    config = tiny_config(FAMILY, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    assert relative_error(token_by_token(our_model(config, weights), ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize("options", [{}, MOE], ids=["dense", "experts"])
def test_no_norm_arm_is_wrong_and_finite(options: dict[str, Any]) -> None:
    config = tiny_config(FAMILY, **options)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    none = our_model(config, weights, "none")(ids)
    assert mx.all(mx.isfinite(none)).item()
    assert relative_error(none, stock(ids)) > 0.1


def test_pairs_that_stand_still_have_no_period() -> None:
    """MLX's own kernel for RoPE, which takes periods, against the tables."""
    rotation = rope.Rotation(32, proportional.inverse_frequencies(32, 1e6, ROPES[GLOBAL]))
    x = mx.random.normal((2, 3, 9, 32))
    positions = rope.Positions(rotation, 5, 9)
    assert rotation.inv_freq[6] == 0
    assert relative_error(positions.launch(x), rotation.rotate(x, positions.tables)) <= TOLERANCE


def test_tensors_are_stocks_where_the_file_says_little() -> None:
    """With nothing but the sizes that must be there, every default is mlx-lm's (its arrays are never made)."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 30, "intermediate_size": 96, "num_attention_heads": 8}
    config = {"model_type": FAMILY, **sizes, "rms_norm_eps": 1e-6, "vocab_size": 331}
    stock, model = stock_model(config), gemma4_text.Model(gemma4_text.Config.from_dict(config))
    want, got = ({name: a.shape for name, a in named_arrays(m)} for m in (stock, model))
    assert got == want
    assert model.args.kinds == stock.args.layer_types
    assert model.args.rope_parameters is not None
    for kind, rope_of_kind in stock.args.rope_parameters.items():
        assert {"partial_rotary_factor": 1.0, **model.args.rope_parameters[kind]} == rope_of_kind
    for key in ("sliding_window", "final_logit_softcapping", "tie_word_embeddings", "use_double_wide_mlp"):
        assert getattr(model.args, key) == getattr(stock.args, key)


# ---- caches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_kv_shared_layers": 0}], ids=["shared", "nothing shared"])
def test_batched_caches_with_offsets_a_row(options: dict[str, Any]) -> None:
    """Left-padded rows: each has its own positions, and the layers that share go by them too."""
    config = tiny_config(FAMILY, **options)
    stock, weights = stock_with_weights(config)
    model = our_model(config, weights)
    ids, padding = ids_for(config), [0, 4]
    outputs = []
    for m in (stock, model):
        cache = [
            BatchKVCache(padding) if kind == GLOBAL else BatchRotatingKVCache(config["sliding_window"], padding)
            for kind in model.args.kinds[: model.args.first_shared]
        ]
        outputs.append([m(ids, cache=cache)[0], *(m(ids[:, i : i + 1], cache=cache) for i in range(8))])
        alone = m(ids[1:, 4:])
        assert relative_error(m(ids, cache=[type(c)(*c_args(c, padding)) for c in cache])[1:, 4:], alone) <= TOLERANCE
    for want, got in zip(*outputs, strict=True):
        assert relative_error(got, want) <= TOLERANCE


def c_args(cache: Any, padding: list[int]) -> tuple:
    return (padding,) if isinstance(cache, BatchKVCache) else (cache.max_size, padding)


def test_caches_are_stock_mlx_lms_and_fewer_than_layers() -> None:
    config = tiny_config(FAMILY)
    stock, weights = stock_with_weights(config)
    model = our_model(config, weights)
    want, got = make_prompt_cache(stock), make_prompt_cache(model)
    assert [type(c) for c in got] == [type(c) for c in want]
    assert len(got) == 4 < len(model.layers)
    assert [getattr(c, "max_size", None) for c in got] == [getattr(c, "max_size", None) for c in want]
    ids = ids_for(config)
    stock(ids, cache=want)
    assert relative_error(model(ids[:, :1], cache=want), stock(ids[:, :1], cache=prefilled(stock, ids))) <= TOLERANCE


@pytest.mark.parametrize("chunks", [(9, 5, 7), (1, 20), (2, 1, 1, 8, 1, 8)], ids=str)
def test_prompts_in_pieces(chunks: tuple[int, ...]) -> None:
    """Longer and shorter than the window, with a cache that has turned over in between."""
    config = tiny_config(FAMILY)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), ids_for(config)
    cache, parts, start = make_prompt_cache(model), [], 0
    for length in chunks:
        parts.append(model(ids[:, start : start + length], cache=cache))
        start += length
    assert relative_error(mx.concatenate(parts, axis=1), stock(ids)) <= TOLERANCE


def test_batches_of_mlx_lm() -> None:
    """Prompts of different lengths, as its batching pads, decodes and drops them."""
    config = tiny_config(FAMILY)
    stock, weights = stock_with_weights(config)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [30, 4], [17, 18, 19, 20]]
    want, got = [batched(m, prompts) for m in (stock, our_model(config, weights))]
    assert want == got
    assert {len(tokens) for tokens in got} == {12, 13, 14}


def batched(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    generator = BatchGenerator(model, max_tokens=14)
    uids = generator.insert(prompts, max_tokens=[12, 14, 13])
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
    return [tokens[uid] for uid in uids]


def prefilled(model: Any, ids: mx.array) -> list:
    cache = make_prompt_cache(model)
    model(ids, cache=cache)
    return cache


def test_quantised_caches_are_shared_too() -> None:
    config = tiny_config(FAMILY, layer_types=[GLOBAL] * 6)
    _, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), ids_for(config, 1)
    want = model(ids[:, :1], cache=prefilled(model, ids))
    cache = [c.to_quantized(group_size=32, bits=8) for c in prefilled(model, ids)]
    assert relative_error(model(ids[:, :1], cache=cache), want) <= 2e-2


def test_embeddings_as_input_need_the_ids_too() -> None:
    config = tiny_config(FAMILY)
    stock, weights = stock_with_weights(config)
    model, ids = our_model(config, weights), ids_for(config)
    embedded = model.model.embed_tokens(ids)
    assert relative_error(model(ids, input_embeddings=embedded), stock(ids, input_embeddings=embedded)) <= TOLERANCE
    with pytest.raises(FlashNormError, match="input_embeddings alone"):
        model(None, input_embeddings=embedded)
    config |= {"hidden_size_per_layer_input": 0}
    plain = our_model(config, stock_with_weights(config)[1])
    assert mx.array_equal(plain(None, input_embeddings=plain.model.embed_tokens(ids)), plain(ids))
