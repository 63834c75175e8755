"""Files of Gemma 4's text model: both layouts load, convert, and are described; bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, relative_error, write_checkpoint
from latent_checkpoints import rewrite
from mlx_lm.utils import load_model as load_with_mlx_lm
from mlx_lm.utils import quantize_model, save_config, save_model

from flashnorm_mlx import FlashNormError, cli
from flashnorm_mlx.architectures import gemma4_text
from flashnorm_mlx.architectures.gemma4_config import GLOBAL, LOCAL
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.converter import Options, convert_with_report
from flashnorm_mlx.info import inspect
from flashnorm_mlx.loader import load_model

FAMILY = "gemma4_text"
IDS = mx.array([[5, 6, 7, 8, 300, 2, 9, 1, 17]])
TOLERANCE = 5e-6
MOE = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 64}
#: Whole groups of 32 in every row, and of 64 in the router's.
WIDE = {"hidden_size": 128, "head_dim": 32, "hidden_size_per_layer_input": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "untied": {"tie_word_embeddings": False, "attention_k_eq_v": False},
    "experts": MOE | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
}


def write(folder: Path, *, hugging_face: bool = False, **options: Any) -> Path:
    path = write_checkpoint(folder, FAMILY, tokenizer=False, **options)
    if hugging_face:
        rewrite(path, as_published)
    return path


def as_published(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Experts as two tensors without ``.weight``; layers that share have keys and values that nobody reads."""
    out = {}
    for name, value in weights.items():
        stem, found, last = name.partition(".switch_glu.")
        if not found:
            out[name] = value
        elif last == "gate_proj.weight":
            out[f"{stem}.gate_up_proj"] = mx.concatenate([value, weights[name.replace("gate", "up")]], axis=-2)
        elif last == "down_proj.weight":
            out[f"{stem}.down_proj"] = value
    last = "model.layers.5.self_attn"
    if f"{last}.k_proj.weight" not in weights:
        out |= {f"{last}.{part}.weight": mx.ones((2, 3)) for part in ("k_proj", "v_proj", "k_norm")}
    return out | {"model.layers.0.self_attn.q_proj.input_max": mx.ones(1)}


def stock_logits(path: Path, *, float32: bool = False) -> mx.array:
    model, _ = load_with_mlx_lm(path)
    if float32:
        model.set_dtype(mx.float32)
    return model(IDS)


@pytest.mark.parametrize("hugging_face", [False, True], ids=["mlx-lm", "Hugging Face"])
@pytest.mark.parametrize("name", OPTIONS)
def test_folding_alone_is_exact_and_stock_loads_it(tmp_path: Path, name: str, hugging_face: bool) -> None:
    source = write(tmp_path / "s", hugging_face=hugging_face, **OPTIONS[name])
    want = stock_logits(source)
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(source, arm=arm)(IDS), want) <= TOLERANCE
    assert relative_error(load_model(source, arm="none")(IDS), want) > 0.1
    report = convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert report.target_bytes == open_checkpoint(tmp_path / "t").nbytes
    assert report.check.fold_error <= TOLERANCE
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(tmp_path / "t", arm=arm)(IDS), want) <= TOLERANCE
    arrays = open_checkpoint(tmp_path / "t").arrays()
    folded = [step.norm for step in report.plan.steps if not step.kept]
    assert len(folded) == {"dense": 12, "untied": 13, "experts": 18}[name]
    assert all(mx.all(arrays[f"{norm}.weight"] == 1).item() for norm in folded)
    kept = json.loads((tmp_path / "t" / "config.json").read_text())["flashnorm"]["kept"]
    assert ("model.norm" in kept) == (name != "untied")


@pytest.mark.parametrize("hugging_face", [False, True], ids=["mlx-lm", "Hugging Face"])
@pytest.mark.parametrize("name", ["dense", "experts"])
def test_quantised_conversion(tmp_path: Path, name: str, hugging_face: bool) -> None:
    every = {"top_k_experts": 8}  # so that rounding sends no token elsewhere
    source = write(tmp_path / "s", hugging_face=hugging_face, **{**WIDE, **OPTIONS[name], **every})
    convert_with_report(source, tmp_path / "t", Options(bits=8, group_size=32))
    want = stock_logits(tmp_path / "t", float32=True)
    assert relative_error(load_model(tmp_path / "t", dtype="float32")(IDS), want) <= TOLERANCE
    names = open_checkpoint(tmp_path / "t").tensors
    packed = {n.split(".")[-2] for n in names if n.endswith(".scales")}
    always = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"}
    per_layer = {"embed_tokens_per_layer", "per_layer_model_projection", "per_layer_input_gate", "per_layer_projection"}
    assert packed == always | (per_layer if name == "dense" else {"proj"})
    assert relative_error(want, stock_logits(source)) < 0.3


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_what_stock_quantised_keeps_its_gains(tmp_path: Path, name: str) -> None:
    """Its router has 8 bits in groups of 64, whatever the others have."""
    source = write(tmp_path / "s", **{**WIDE, **OPTIONS[name]})
    model, config = load_with_mlx_lm(source)
    model, config = quantize_model(model, config, 32, 4, quant_predicate=model.quant_predicate)
    (tmp_path / "q").mkdir()
    save_model(tmp_path / "q", model)
    save_config(config, tmp_path / "q" / "config.json")
    want = stock_logits(tmp_path / "q")
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(tmp_path / "q", arm=arm)(IDS), want) <= TOLERANCE
    fates = {n.norm.rpartition(".")[2]: n.gain for n in inspect(tmp_path / "q").norms}
    assert fates["input_layernorm"] == "kept: the projections are already quantised"


def test_norms_that_a_folded_source_dropped(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    want = stock_logits(source)
    folded = load_model(source, arm="none", lazy=True)
    dropped = ("input_layernorm.weight", "pre_feedforward_layernorm.weight")
    rewrite(source, lambda w: {k: v for k, v in folded.sanitize(w).items() if not k.endswith(dropped)})
    edit_config(source, flash_norm=True)
    assert relative_error(load_model(source)(IDS), want) <= TOLERANCE
    convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": ...},
        {"num_kv_shared_layers": None},
        {"layer_types": None, "sliding_window_pattern": 2},
        {"rope_parameters": None},
        {"sliding_window": ...},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_left_out_is_written_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    """So that stock mlx-lm, which can't read all of it, runs the same model."""
    source = write(tmp_path / "s", num_kv_shared_layers=0, hidden_size_per_layer_input=0)
    edit_config(source, **changes)
    want = load_model(source, arm="baseline")(IDS)
    convert_with_report(source, tmp_path / "t", Options(quantize=False))
    assert relative_error(stock_logits(tmp_path / "t"), want) <= TOLERANCE


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "s", **MOE)
    info = inspect(source)
    assert info.cache_bytes_per_position == 4 * 2 * (2 * 2 * 16 + 2 * 32)
    table, expert = 331 * 6 * 12 * 4, 3 * 96 * 64 * 4
    assert info.bytes_per_token == info.file_bytes - table - 6 * 5 * expert
    said = {(n.norm.rpartition(".")[2], n.into): n for n in info.norms}
    cancelled = [n for (norm, _), n in said.items() if norm == "input_layernorm"]
    assert [(n.count, n.into) for n in cancelled] == [
        (2, ("q_proj", "k_proj", "v_proj")),
        (2, ("q_proj", "k_proj")),
        (2, ("q_proj",)),
    ]
    assert all("cancelled" in n.scale and n.gain == "folded into the weights" for n in cancelled)
    gains = {norm: n.gain for (norm, _), n in said.items()}
    assert gains["v_norm"] == "none"
    assert gains["q_norm"] == gains["k_norm"] == "fused into RoPE's tables"
    assert gains["norm"] == "kept: the head is tied to the embeddings"
    for post in ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm"):
        assert gains[post].startswith("a post-norm")
    for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "per_layer_projection_norm"):
        assert "no projection" in gains[norm]
    assert gains["pre_feedforward_layernorm_2"] == "folded into the weights"
    assert "router's input" in gains["router"]
    named = {name.rpartition(".")[0].split(".")[-1] for name in open_checkpoint(source).tensors if "norm" in name}
    assert named <= gains.keys()
    assert cli.main(["info", str(source)]) == 0
    assert "v_norm" in capsys.readouterr().out


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All arms, greedy decoding among it, by the command."""
    source = write_checkpoint(tmp_path / "s", FAMILY)
    assert cli.main(["verify", str(source)]) == 0
    assert "flashnorm" in capsys.readouterr().out


ROPES = gemma4_text.Config.from_dict(gemma4_text.TINY).rope_parameters or {}


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {**ROPES, kind: {k: v for k, v in {**ROPES[kind], **changes}.items() if v is not ...}}}


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
    ({"layer_types": [LOCAL]}, "layer_types has 1 entries for 6 layers"),
    ({"layer_types": [LOCAL] * 5 + ["odd"]}, "layer_types has 'odd'"),
    ({"layer_types": [LOCAL] * 5 + [{"a": 1}]}, "layer_types must be a list of names"),
    ({"layer_types": [LOCAL] * 5 + [GLOBAL]}, "none of the layers before is of the type full_attention"),
    ({"num_kv_shared_layers": 6}, "num_kv_shared_layers 6 of num_hidden_layers 6 leaves none"),
    ({"num_kv_shared_layers": -1}, "num_kv_shared_layers must be an integer from 0 on, not -1"),
    ({"num_kv_shared_layers": True}, "num_kv_shared_layers must be an integer"),
    ({"num_kv_shared_layers": ...}, "num_kv_shared_layers 20 of num_hidden_layers 6"),
    ({"num_kv_shared_layers": 3}, "config.json this model's|has shape"),
    ({"hidden_size_per_layer_input": 0}, "per_layer.* not part of the model"),
    ({"hidden_size_per_layer_input": 1.5}, "hidden_size_per_layer_input must be an integer from 0 on"),
    ({"vocab_size_per_layer_input": 330}, "vocab_size_per_layer_input 330 is less than vocab_size 331"),
    ({"vocab_size_per_layer_input": 340}, r"has shape \[331, 72\], config.json asks for \[340, 72\]"),
    ({"global_head_dim": 31}, "global_head_dim 31 is odd"),
    ({"global_head_dim": None}, "has shape"),
    ({"head_dim": 15}, "head_dim 15 is odd"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ({"num_global_key_value_heads": 3}, "not a multiple of num_global_key_value_heads 3"),
    ({"attention_k_eq_v": False}, "v_proj.* missing from the files"),
    ({"attention_bias": True}, "attention_bias is not supported for gemma4_text"),
    ({"use_double_wide_mlp": False}, "has shape"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all' is not supported"),
    ({"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
    ({"final_logit_softcapping": -1.0}, "final_logit_softcapping must be a positive number"),
    ({"rope_traditional": True}, "rope_traditional is not supported"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is not supported for gemma4_text"),
    ({"sliding_window": 0}, "sliding_window must be a positive integer"),
    ({"rope_parameters": [1]}, "rope_parameters must be a dict"),
    ({"rope_parameters": {GLOBAL: ROPES[GLOBAL]}}, "rope_parameters: sliding_attention must be a dict, not None"),
    (rope(LOCAL, rope_theta=...), "rope_parameters: sliding_attention: rope_theta must be a positive number, not None"),
    (rope(LOCAL, rope_type="yarn"), "RoPE of type 'yarn' is not supported"),
    (rope(LOCAL, type="linear"), "its type is both default and linear"),
    (rope(LOCAL, factor=2.0), "factor is given, and the type is default"),
    (rope(LOCAL, rope_type="linear"), "sliding_attention: factor must be a positive number, not None"),
    (rope(LOCAL, partial_rotary_factor=0.5), "partial_rotary_factor 0.5 is not supported for RoPE of type default"),
    (rope(GLOBAL, partial_rotary_factor=1.5), "partial_rotary_factor must be a number from 0 to 1, not 1.5"),
    (rope(GLOBAL, rope_theta=float("inf")), "full_attention: rope_theta must be a positive number"),
    ({"global_partial_rotary_factor": 0.5}, "global_partial_rotary_factor is 0.5, and 0.25 in rope_parameters"),
    ({"enable_moe_block": True}, "num_experts is missing, and enable_moe_block is true"),
    (MOE | {"top_k_experts": 9}, "top_k_experts 9 is more than num_experts 8"),
    (MOE, "missing from the files"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "m")


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_bad_configs(good: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_config(tmp_path, **changes)
    with pytest.raises(FlashNormError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
