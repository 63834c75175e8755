"""Files of OLMo 2, Phi-3, Ministral 3 and yarn: they load, convert and are described; bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import (
    edit_config,
    random_weights,
    relative_error,
    stock_model,
    tiny_config,
    write_checkpoint,
    write_tokenizer,
)
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as load_stock
from mlx_lm.utils import quantize_model
from test_models import SCALED, SLIDING, TOLERANCE, YARN

from flashnorm_mlx import FlashNormError, cli
from flashnorm_mlx.architectures import phi3
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.converter import Options, convert, convert_with_report
from flashnorm_mlx.info import inspect
from flashnorm_mlx.loader import load_model
from flashnorm_mlx.verify import verify

IDS = mx.array([[5, 6, 7, 8, 300, 2, 9, 10, 11, 12, 13]])
LONGROPE = phi3.TINY["rope_scaling"]
#: Whole groups of 32 in every row.
WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("olmo2", {"rope_scaling": YARN}),
    ("phi3", {}),
    ("ministral3", SLIDING),
    ("mistral", {"rope_scaling": YARN}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen3", {"rope_scaling": YARN}),
]


def stock_logits(path: Path) -> mx.array:
    model, _ = load_stock(path)
    model.set_dtype(mx.float32)
    return model(IDS)


@pytest.mark.parametrize(("family", "options"), FORMS)
def test_conversions_run_in_stock_too(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "s", family, **(options | WIDE), tokenizer=False)
    want = stock_logits(source)
    report = convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert report.check.fold_error <= TOLERANCE
    assert open_checkpoint(tmp_path / "t").tensors.keys() == open_checkpoint(source).tensors.keys()
    for logits in (stock_logits(tmp_path / "t"), load_model(tmp_path / "t")(IDS), load_model(source)(IDS)):
        assert relative_error(logits, want) <= TOLERANCE
    convert(source, tmp_path / "q", bits=8, group_size=32)
    quantised = stock_logits(tmp_path / "q")
    assert relative_error(load_model(tmp_path / "q")(IDS), quantised) <= TOLERANCE
    assert 1e-4 < relative_error(quantised, want) < 0.2
    convert(tmp_path / "t", tmp_path / "again", quantize=False)
    assert relative_error(stock_logits(tmp_path / "again"), want) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 3}}),
        ("phi3", {"rope_scaling": {"rope_type": "default"}}),
        ("phi3", {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": {**LONGROPE, "rope_theta": 5e3}}),
        (
            "phi3",
            {
                **dict.fromkeys(("rope_theta", "rope_scaling", "partial_rotary_factor"), ...),
                "original_max_position_embeddings": ...,
                "rope_parameters": {
                    "rope_theta": 5e3,
                    "rope_type": "longrope",
                    "partial_rotary_factor": 0.5,
                    "original_max_position_embeddings": 64,
                    **{key: LONGROPE[key] for key in ("short_factor", "long_factor")},
                },
            },
        ),
        ("phi3", {"rope_scaling": LONGROPE | {"type": "su"}}),
        ("phi3", {"tie_word_embeddings": ...}),
        ("ministral3", {"rope_parameters": {k: v for k, v in SCALED.items() if k != "rope_theta"}}),
        ("ministral3", {"rope_theta": ..., "rope_scaling": SCALED}),
        ("olmo2", {"rope_theta": ..., "rope_parameters": YARN | {"rope_theta": 7e4}}),
        ("qwen2", {"rope_theta": ..., "rope_parameters": YARN | {"rope_theta": 7e4}}),
    ],
)
def test_what_stock_reads_differently_is_said(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Keys that stock mlx-lm defaults, overlooks or asks for are written out, so that it runs what we ran."""
    source = write_checkpoint(tmp_path / "s", family, tokenizer=False)
    edit_config(source, **changes)
    want = load_model(source, arm="baseline")(IDS)
    target = convert(source, tmp_path / "t", quantize=False)
    assert relative_error(stock_logits(target), want) <= TOLERANCE
    assert relative_error(load_model(target)(IDS), want) <= TOLERANCE


def test_stacked_projections_keep_their_names(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", "phi3", tokenizer=False)
    target = convert(source, tmp_path / "t", quantize=False)
    folded = json.loads((target / "config.json").read_text())["flashnorm"]["folded"]
    assert folded["model.layers.1.input_layernorm"] == ["model.layers.1.self_attn.qkv_proj"]
    assert folded["model.layers.1.post_attention_layernorm"] == ["model.layers.1.mlp.gate_up_proj"]
    before, after = open_checkpoint(source).arrays(), open_checkpoint(target).arrays()
    name = "model.layers.1.self_attn.qkv_proj.weight"
    gain = before["model.layers.1.input_layernorm.weight"]
    assert mx.allclose(after[name], before[name] * gain, rtol=1e-6).item()


FATES = {
    "olmo2": [
        ("q_norm", 3, "fused into RoPE's tables, a head's share into its own"),
        ("k_norm", 3, "fused into RoPE's tables, a head's share into its own"),
        ("post_attention_layernorm", 3, "a post-norm, which feeds the residual alone"),
        ("post_feedforward_layernorm", 3, "a post-norm, which feeds the residual alone"),
        ("norm", 1, "folded into the weights"),
    ],
    "phi3": [
        ("input_layernorm", 3, "folded into the weights"),
        ("post_attention_layernorm", 3, "folded into the weights"),
        ("norm", 1, "folded into the weights"),
    ],
}
FATES["ministral3"] = FATES["phi3"]


@pytest.mark.parametrize("family", FATES)
def test_info(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "m", family, tokenizer=False)
    info = inspect(path)
    assert [(n.norm.rpartition(".")[2], n.count, n.gain) for n in info.norms] == FATES[family]
    assert info.norms[-1].into == ("lm_head",)
    if family == "phi3":
        assert [n.into for n in info.norms[:2]] == [("qkv_proj",), ("gate_up_proj",)]
    assert cli.main(["info", str(path)]) == 0
    assert "lm_head" in capsys.readouterr().out


@pytest.mark.parametrize("family", FATES)
def test_verify(family: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", family)
    (path / "text.txt").write_text(" ".join(f"w{i}" for i in range(2, 42)))
    found = verify(path, text=path / "text.txt", greedy_tokens=4)
    assert found.ok, found.results
    assert [r.logit_error <= TOLERANCE for r in found.results] == [True, True, False]


def scaled(**changes: Any) -> dict[str, Any]:
    changed = SCALED | changes
    return {"rope_parameters": {k: v for k, v in changed.items() if v is not ...}}


def longrope(**changes: Any) -> dict[str, Any]:
    changed = LONGROPE | changes
    return {"rope_scaling": {k: v for k, v in changed.items() if v is not ...}}


def yarn(**changes: Any) -> dict[str, Any]:
    changed = YARN | changes
    return {"rope_scaling": {k: v for k, v in changed.items() if v is not ...}}


SHORT = [1.0] * 7
ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_attention is not supported for qwen3"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported for gemma2"),
    ("gemma3_text", {"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported for gemma3_text"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
    ("gemma4_text", {"per_layer_config": {"0": {}}}, "per_layer_config is not supported"),
    ("openelm", {"activation_fn_name": "gelu"}, "activation_fn_name 'gelu' is not supported for openelm"),
    ("openelm", {"normalization_layer_name": "layer_norm"}, "normalization_layer_name 'layer_norm' is not supported"),
    ("llama", yarn(factor=...), "rope_scaling: factor must be a number from 1 on, not None"),
    ("llama", yarn(factor="4"), "rope_scaling: factor must be a number from 1 on, not '4'"),
    ("mistral", yarn(factor=0.5), "rope_scaling: factor must be a number from 1 on, not 0.5"),
    ("qwen2", yarn(original_max_position_embeddings=...), "original_max_position_embeddings must be a number from 1"),
    ("qwen3", yarn(beta_fast=1, beta_slow=1), "beta_fast must be greater than beta_slow"),
    ("llama", yarn(beta_fast=0), "beta_fast must be a number from 1e-09 on, not 0"),
    ("llama", yarn(mscale=float("nan")), "mscale must be a number from 0 on, not nan"),
    ("llama", yarn(mscale_all_dim=True), "mscale_all_dim must be a number from 0 on, not True"),
    ("llama", yarn(attention_factor=1.2), "attention_factor is not supported"),
    ("llama", yarn(truncate=False), "truncate is not supported"),
    ("llama", yarn() | {"rope_theta": 1.0}, "rope_theta must be greater than 1, not 1.0"),
    ("llama", yarn(type="linear"), "its type is both linear and yarn"),
    ("llama", longrope(), "type 'longrope' is not supported for llama"),
    ("gemma", yarn() | {"tie_word_embeddings": True}, "type 'yarn' is not supported for gemma"),
    ("gemma3_text", yarn(), "type 'yarn' is not supported for gemma3_text"),
    ("openelm", yarn(), "type 'yarn' is not supported for openelm"),
    ("olmo2", {"attention_bias": "no"}, "attention_bias must be a bool"),
    ("olmo2", {"mlp_bias": True}, "missing from the files"),
    ("olmo2", {"num_key_value_heads": 3}, r"k_norm.weight has shape \[32\], config.json asks for \[48\]|k_proj"),
    ("olmo2", {"rope_theta": ...}, "rope_theta is missing"),
    ("phi3", longrope(type="yarn"), "type 'yarn' is not supported for phi3"),
    ("phi3", longrope(type="llama3"), "type 'llama3' is not supported for phi3"),
    ("phi3", longrope(type="linear"), "factor must be a positive number, not None"),
    ("phi3", longrope(long_factor=SHORT), "long_factor has 7 entries for 8 rotated pairs"),
    ("phi3", longrope(short_factor=SHORT), "short_factor has 7 entries for 8 rotated pairs"),
    ("phi3", longrope(long_factor=...), "long_factor must be a list of positive numbers, not None"),
    ("phi3", longrope(long_factor=2.0), "long_factor must be a list of positive numbers, not 2.0"),
    ("phi3", longrope(long_factor=[*SHORT, 0]), "long_factor must be a list of positive numbers"),
    ("phi3", longrope(attention_factor=1.1), "attention_factor is not supported for phi3"),
    ("phi3", longrope(long_mscale=1.1), "long_mscale is not supported for phi3"),
    (
        "phi3",
        {"original_max_position_embeddings": ...},
        "original_max_position_embeddings must be an integer from 2 on",
    ),
    ("phi3", {"original_max_position_embeddings": 1}, "original_max_position_embeddings must be an integer from 2 on"),
    ("phi3", {"original_max_position_embeddings": "4k"}, "must be a positive integer, not '4k'"),
    ("phi3", {"max_position_embeddings": ...}, "max_position_embeddings must be an integer from 2 on, not None"),
    (
        "phi3",
        longrope(original_max_position_embeddings=32),
        "original_max_position_embeddings is 64 and 32; remove one",
    ),
    ("phi3", {"partial_rotary_factor": 0.35, "rope_scaling": None}, "rotates 11 of 32 dimensions"),
    ("phi3", {"partial_rotary_factor": 1.5, "rope_scaling": None}, "rotates 48 of 32 dimensions"),
    ("phi3", {"partial_rotary_factor": "half"}, "partial_rotary_factor must be a positive number, not 'half'"),
    ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.5 and 0.25; remove one"),
    ("phi3", {"head_dim": 16}, "head_dim 16 is not hidden_size 96 / num_attention_heads 3"),
    ("phi3", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for phi3"),
    ("phi3", {"rope_scaling": "longrope"}, "rope_scaling must be a dict"),
    ("ministral3", {"rope_parameters": ...}, "rope_parameters must be an object, not None"),
    ("ministral3", {"rope_parameters": [1]}, r"rope_parameters must be an object, not \[1\]"),
    ("ministral3", scaled(llama_4_scaling_beta=...), "llama_4_scaling_beta must be a number from 0 on, not None"),
    ("ministral3", scaled(llama_4_scaling_beta=-0.1), "llama_4_scaling_beta must be a number from 0 on, not -0.1"),
    ("ministral3", scaled(original_max_position_embeddings=0), "must be a number from 1 on, not 0"),
    ("ministral3", scaled(factor=...), "rope_scaling: factor must be a number from 1 on, not None"),
    ("ministral3", scaled(rope_type="dynamic"), "type 'dynamic' is not supported for ministral3"),
    ("ministral3", scaled(rope_theta=5.0), "rope_theta is 10000.0, and 5.0 in rope_parameters"),
    ("ministral3", {"rope_scaling": YARN}, "rope_scaling is not rope_parameters; remove it"),
    ("ministral3", {"attention_bias": True}, "attention_bias is not supported for ministral3"),
    ("ministral3", {"layer_types": ["sliding_attention"] * 3}, "sliding_window is missing"),
]


@pytest.mark.parametrize(("family", "changes", "message"), ERRORS, ids=[f"{e[0]}-{i}" for i, e in enumerate(ERRORS)])
def test_bad_configs(tmp_path: Path, family: str, changes: dict[str, Any], message: str) -> None:
    path = write_checkpoint(tmp_path / "m", family, tokenizer=False)
    edit_config(path, **changes)
    with pytest.raises(FlashNormError, match=message) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_verify_of_a_table_in_fp4(family: str, tmp_path: Path) -> None:
    """Stock's yields bfloat16, whatever its dtype, and would be no reference."""
    config = tiny_config(family, **WIDE)
    model = stock_model(config)
    model.load_weights(list(random_weights(model).items()))
    model, config = quantize_model(model, config, 32, 4, mode="mxfp4")
    path = tmp_path / "m"
    path.mkdir()
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path, config["vocab_size"])
    assert all(r.logit_error <= TOLERANCE for r in verify(path).results if r.arm != "none")
