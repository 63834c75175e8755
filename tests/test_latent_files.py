"""Files of the families with latent attention: both layouts load, convert, and are described; bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, relative_error
from latent_checkpoints import rewrite, write
from mlx_lm.utils import load_model as load_with_mlx_lm
from mlx_lm.utils import quantize_model, save_config, save_model

from flashnorm_mlx import FlashNormError, cli
from flashnorm_mlx.architectures import deepseek_v2
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.converter import Options, convert_with_report
from flashnorm_mlx.info import inspect
from flashnorm_mlx.loader import load_model

FAMILIES = ("deepseek_v2", "deepseek_v3")
LAYOUTS = ("mlx-lm", "Hugging Face")
IDS = mx.array([[5, 6, 7, 8, 300, 2]])
TOLERANCE = 5e-6
#: Whole groups of 32 in every row.
WIDE = {
    "hidden_size": 128,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "moe_intermediate_size": 64,
}


def stock_logits(path: Path, *, float32: bool = False) -> mx.array:
    model, _ = load_with_mlx_lm(path)
    if float32:
        model.set_dtype(mx.float32)
    return model(IDS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"q_lora_rank": None}], ids=["full", "lite"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_alone_is_exact_and_stock_loads_it(
    tmp_path: Path, family: str, options: dict[str, Any], layout: str
) -> None:
    source = write(tmp_path / "s", family, layout, **options)
    want = stock_logits(source)
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(source, arm=arm)(IDS), want) <= TOLERANCE
    assert relative_error(load_model(source, arm="none")(IDS), want) > 0.1
    report = convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert report.target_bytes == open_checkpoint(tmp_path / "t").nbytes
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(tmp_path / "t", arm=arm)(IDS), want) <= TOLERANCE
    gains = {k: v for k, v in open_checkpoint(tmp_path / "t").arrays().items() if "norm" in k}
    assert len(gains) == (9 if not options else 7)
    assert all(mx.all(g == 1).item() for g in gains.values())
    kept = json.loads((tmp_path / "t" / "config.json").read_text())["flashnorm"]["kept"]
    assert kept == {}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_conversion(tmp_path: Path, family: str, layout: str) -> None:
    """Both layouts give the same model; kv_b_proj is quantised as the halves that are read."""
    source = write(tmp_path / "s", family, layout, **WIDE)
    convert_with_report(source, tmp_path / "t", Options(bits=8, group_size=32))
    want = stock_logits(tmp_path / "t", float32=True)
    assert relative_error(load_model(tmp_path / "t", dtype="float32")(IDS), want) <= TOLERANCE
    names = open_checkpoint(tmp_path / "t").tensors
    packed = {name.split(".")[-2] for name in names if name.endswith(".scales")}
    latents = {"kv_b_proj"} if family == "deepseek_v2" else {"embed_q", "unembed_out"}
    projections = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert packed == {*projections, *latents, "embed_tokens", "lm_head"}
    experts = [name for name in names if "experts." in name or "switch_mlp." in name]
    assert {name.endswith((".scales", ".biases", ".weight")) for name in experts} == {True}
    assert relative_error(want, stock_logits(source)) < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stock_quantised_keeps_its_gains(tmp_path: Path, family: str) -> None:
    source = write(tmp_path / "s", family, "mlx-lm", **WIDE)
    model, config = load_with_mlx_lm(source)
    model, config = quantize_model(model, config, 32, 8)
    (tmp_path / "q").mkdir()
    save_model(tmp_path / "q", model)
    save_config(config, tmp_path / "q" / "config.json")
    want = stock_logits(tmp_path / "q")
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(tmp_path / "q", arm=arm)(IDS), want) <= TOLERANCE
    fates = {n.norm.rpartition(".")[2]: n.gain for n in inspect(tmp_path / "q").norms}
    assert fates["kv_a_layernorm"] == "kept: the projections are already quantised"


def test_a_quantised_kv_b_proj_is_not_quantised_again(tmp_path: Path) -> None:
    """As older conversions of DeepSeek-V3 have it; stock mlx-lm rounds it a second time."""
    source = write(tmp_path / "s", "deepseek_v3", "Hugging Face", **WIDE)
    exact = {}

    def quantised(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        for name in [n for n in weights if n.endswith("kv_b_proj.weight")]:
            stem = name.removesuffix(".weight")
            parts = mx.quantize(weights[name], group_size=32, bits=8)
            weights |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
            exact[name] = mx.dequantize(*parts, group_size=32, bits=8)
        return weights

    rewrite(source, quantised)
    edit_config(source, quantization={"bits": 8, "group_size": 32, "mode": "affine"})
    got = [load_model(source, arm=arm)(IDS) for arm in ("baseline", "flashnorm")]
    rewrite(source, lambda w: {k: v for k, v in w.items() if not k.endswith((".scales", ".biases"))} | exact)
    edit_config(source, quantization=...)
    want = stock_logits(source)
    assert max(relative_error(logits, want) for logits in got) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_experts_in_low_precision(tmp_path: Path, family: str) -> None:
    source = write(tmp_path / "s", family, "Hugging Face", **WIDE)
    convert_with_report(source, tmp_path / "t", Options(bits=8, group_size=32, dtype="float16"))
    logits = load_model(tmp_path / "t", dtype="float16")(IDS)
    assert logits.dtype == mx.float16
    assert relative_error(logits, load_model(tmp_path / "t", dtype="float32")(IDS)) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_that_a_folded_source_dropped(tmp_path: Path, family: str) -> None:
    source = write(tmp_path / "s", family, "mlx-lm")
    want = stock_logits(source)
    folded = load_model(source, arm="none", lazy=True)
    rewrite(source, lambda w: {k: v for k, v in folded.sanitize(w).items() if "norm" not in k})
    edit_config(source, flash_norm=True)
    assert relative_error(load_model(source)(IDS), want) <= TOLERANCE
    convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "s", "deepseek_v3", "Hugging Face")
    want = stock_logits(source)
    rewrite(source, lambda w: w | {"model.layers.2.eh_proj.weight": mx.ones((2, 2))})
    with pytest.raises(FlashNormError, match="not part of the model"):
        load_model(source)
    edit_config(source, num_nextn_predict_layers=1)
    assert relative_error(load_model(source)(IDS), want) <= TOLERANCE
    convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE


def test_the_routers_bias_keeps_its_dtype(tmp_path: Path) -> None:
    """It is added to scores that are float32, and decides between experts that are close."""
    source = write(tmp_path / "s", "deepseek_v3", "mlx-lm")
    convert_with_report(source, tmp_path / "t", Options(quantize=False, dtype="float16"))
    dtypes = {name: t.dtype for name, t in open_checkpoint(tmp_path / "t").tensors.items()}
    assert {name.rpartition(".")[2] for name, dtype in dtypes.items() if dtype == "F32"} == {"e_score_correction_bias"}
    model = load_model(tmp_path / "t", dtype="float16")
    assert model.layers[1].mlp.gate.e_score_correction_bias.dtype == mx.float32
    assert model.layers[1].mlp.gate.weight.dtype == mx.float16


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_info(tmp_path: Path, family: str, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "s", family, layout)
    info = inspect(source)
    assert info.cache_bytes_per_position == 2 * 4 * (4 * (24 + 16 + 20) if family == "deepseek_v2" else 48 + 16)
    expert, experts, chosen = 3 * 96 * 56 * 4, 8, 3
    assert info.bytes_per_token == info.file_bytes - 331 * 96 * 4 - (experts - chosen) * expert
    assert {n.gain for n in info.norms} == {"folded into the weights"}
    assert any("switch_mlp.gate_proj" in n.into and "mlp.gate" in n.into for n in info.norms)
    assert cli.main(["info", str(source)]) == 0
    assert "kv_a_layernorm" in capsys.readouterr().out


YARN = deepseek_v2.TINY["rope_scaling"]


@pytest.mark.parametrize("family", FAMILIES)
def test_yarn_where_newer_files_have_it(tmp_path: Path, family: str) -> None:
    """In rope_parameters, which stock mlx-lm does not read here: the conversion says it where it does."""
    source = write(tmp_path / "s", family, "mlx-lm")
    want = stock_logits(source)
    nested = {k: v for k, v in YARN.items() if k != "type"} | {"rope_type": "yarn", "rope_theta": 10000.0}
    edit_config(source, rope_theta=..., rope_scaling=..., rope_parameters=nested)
    assert relative_error(load_model(source)(IDS), want) <= TOLERANCE
    convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE


ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v2", {"q_lora_rank": ...}, "q_lora_rank is missing"),
    ("deepseek_v2", {"q_lora_rank": None}, "self_attn.q_proj.weight and .*missing from the files"),
    ("deepseek_v2", {"q_lora_rank": 0}, "q_lora_rank must be a positive integer"),
    ("deepseek_v2", {"kv_lora_rank": ...}, "kv_lora_rank is missing"),
    ("deepseek_v2", {"kv_lora_rank": 47}, r"has shape \[.*config.json asks for"),
    ("deepseek_v2", {"qk_rope_head_dim": 15}, "qk_rope_head_dim 15 is odd"),
    ("deepseek_v2", {"qk_nope_head_dim": ...}, "qk_nope_head_dim is missing"),
    ("deepseek_v2", {"v_head_dim": "x"}, "v_head_dim must be a positive integer"),
    ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads 2 is not num_attention_heads 4"),
    ("deepseek_v2", {"num_experts_per_tok": ...}, "num_experts_per_tok is missing, and n_routed_experts is 8"),
    ("deepseek_v2", {"moe_intermediate_size": ...}, "moe_intermediate_size is missing"),
    ("deepseek_v2", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the"),
    ("deepseek_v2", {"n_routed_experts": 9}, "has shape|missing from the files"),
    ("deepseek_v2", {"n_shared_experts": None}, "shared_experts.* not part of the model"),
    ("deepseek_v2", {"first_k_dense_replace": -1}, "first_k_dense_replace must be an integer from 0 on, not -1"),
    ("deepseek_v2", {"first_k_dense_replace": 2}, "config.json this model's"),
    ("deepseek_v2", {"first_k_dense_replace": True}, "first_k_dense_replace must be an integer"),
    ("deepseek_v2", {"num_nextn_predict_layers": 0.5}, "num_nextn_predict_layers must be an integer"),
    ("deepseek_v2", {"moe_layer_freq": 0}, "moe_layer_freq must be a positive integer"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc' is not supported"),
    ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group or topk_group is missing"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func 'sigmoid' is not supported"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is not supported"),
    ("deepseek_v2", {"rope_interleave": False}, "rope_interleave false is not supported"),
    ("deepseek_v2", {"attention_bias": True}, "missing from the files"),
    ("deepseek_v2", {"rope_theta": 1.0}, "rope_theta must be greater than 1"),
    ("deepseek_v2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ("deepseek_v2", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling: type 'linear' is not supported"),
    ("deepseek_v2", {"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor must be a number from 1 on, not None"),
    ("deepseek_v2", {"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling: factor must be a number from 1 on"),
    ("deepseek_v2", {"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings must be"),
    ("deepseek_v2", {"rope_scaling": YARN | {"mscale": "x"}}, "rope_scaling: mscale must be a number"),
    ("deepseek_v2", {"rope_scaling": YARN | {"beta_fast": 1}}, "beta_fast must be greater than beta_slow"),
    ("deepseek_v2", {"rope_scaling": YARN | {"attention_factor": 2.0}}, "attention_factor is not supported"),
    ("deepseek_v2", {"rope_scaling": {"type": "default", "factor": 4}}, "factor is given, and the type is default"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method 'greedy' is not supported"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
    ("deepseek_v3", {"n_group": 3}, "n_routed_experts 8 is not a multiple of n_group 3"),
    ("deepseek_v3", {"n_group": 8}, "less than two for each of n_group 8"),
    ("deepseek_v3", {"topk_group": 5}, "topk_group 5 is greater than n_group 4"),
    ("deepseek_v3", {"num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than the"),
    ("deepseek_v3", {"routed_scaling_factor": ...}, "routed_scaling_factor is missing"),
    ("deepseek_v3", {"first_k_dense_replace": ...}, "first_k_dense_replace is missing"),
    ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "quantization by 'fp8' is not supported"),
]


@pytest.mark.parametrize(("family", "changes", "message"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_bad_configs(tmp_path: Path, family: str, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "m", family, "Hugging Face" if family == "deepseek_v3" else "mlx-lm")
    edit_config(path, **changes)
    with pytest.raises(FlashNormError, match=message) as caught:
        load_model(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.0.self_attn.kv_b_proj.weight"]
)
def test_a_missing_piece_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m", "deepseek_v3", "Hugging Face")
    rewrite(path, lambda w: {k: v for k, v in w.items() if k != name})
    wanted = name if "experts" in name else "model.layers.0.self_attn.embed_q.weight"
    with pytest.raises(FlashNormError, match=f"tensor {wanted}.* missing from the files"):
        load_model(path)
