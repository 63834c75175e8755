"""load: stock, quantised and converted checkpoints, dtypes, stop tokens, and what is said of what can't be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from checkpoints import FAMILIES, edit_config, relative_error, stock_with_weights, tiny_config, write_checkpoint
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as stock_load_model
from mlx_lm.utils import quantize_model

import flashnorm_mlx
from flashnorm_mlx import FlashNormError
from flashnorm_mlx.loader import load_model, resolve, stop_tokens

IDS = mx.array([[5, 6, 7, 8, 300, 2]])
WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "num_attention_heads": 4}


def quantised_checkpoint(folder: Path, family: str, **overrides: Any) -> Path:
    """What mlx_lm.convert -q writes."""
    config = tiny_config(family, **WIDE, **overrides)
    stock, _ = stock_with_weights(config)
    stock, config = quantize_model(stock, config, 32, 4)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(stock.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_stock_checkpoint(tmp_path: Path, family: str, shards: int, arm: str) -> None:
    path = write_checkpoint(tmp_path / "m", family, shards=shards)
    model, tokenizer = flashnorm_mlx.load(path, arm=arm)
    stock, stock_tokenizer = mlx_lm.load(str(path))
    assert relative_error(model(IDS), stock(IDS)) <= 5e-6
    assert tokenizer.encode("w5 w6") == stock_tokenizer.encode("w5 w6")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_checkpoint_keeps_its_gains(tmp_path: Path, family: str, tied: bool) -> None:
    path = quantised_checkpoint(tmp_path / "q", family, tie_word_embeddings=tied)
    model = load_model(path)
    stock, _ = stock_load_model(path)
    assert relative_error(model(IDS), stock(IDS)) <= 5e-6
    assert "weight" in model.layers[0].input_layernorm
    packed, theirs = model.layers[0].self_attn.qkv_proj, stock.layers[0].self_attn
    assert mx.array_equal(packed.weight, mx.concatenate([theirs[f"{p}_proj"].weight for p in "qkv"]))


def test_mixed_quantisation_is_not_stacked(tmp_path: Path) -> None:
    """v in 8 bits, q and k in 4, up not at all: they can't be one matrix, and need not be."""
    config = tiny_config("llama", **WIDE, attention_bias=True)
    stock, _ = stock_with_weights(config)

    def predicate(path: str, module: Any) -> Any:
        if path.endswith("up_proj"):
            return False
        return {"bits": 8, "group_size": 64} if path.endswith("v_proj") else hasattr(module, "to_quantized")

    stock, config = quantize_model(stock, config, 32, 4, quant_predicate=predicate)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(stock.parameters())))
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path)
    assert "qkv_proj" not in model.layers[0].self_attn
    assert relative_error(model(IDS), stock(IDS)) <= 5e-6


@pytest.mark.parametrize("mark", ["flashnorm", "flashnorm_folded", "flash_norm"])
@pytest.mark.parametrize("strict", [False, True])
def test_published_folded_checkpoints(tmp_path: Path, mark: str, strict: bool) -> None:
    """Marked checkpoints, with all-ones norms or with none, load with folded weights as they are."""
    path = write_checkpoint(tmp_path / "m")
    weights = dict(mx.load(str(path / "model.safetensors")).items())
    plain = load_model(path, arm="none", lazy=True).sanitize(weights)
    plain = {k: v for k, v in plain.items() if not (strict and "norm" in k)}
    mx.save_safetensors(str(path / "model.safetensors"), plain)
    edit_config(path, **{mark: True})
    stock, _ = stock_with_weights(tiny_config("llama"))
    assert relative_error(load_model(path)(IDS), stock(IDS)) <= 5e-6


def test_dtype_on_the_cpu_is_float32_unless_asked(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", dtype=mx.float16)
    assert load_model(path)(IDS).dtype == (mx.float32 if mx.default_device() == mx.cpu else mx.float16)
    for name in ("float32", "float16", "bfloat16"):
        model = load_model(path, dtype=name)
        assert model(IDS).dtype == getattr(mx, name)
        assert {a.dtype for _, a in tree_flatten(model.parameters())} == {getattr(mx, name)}


def test_tying_is_read_off_the_weights_where_config_is_silent(tmp_path: Path) -> None:
    for tied in (False, True):
        path = write_checkpoint(tmp_path / str(tied), tie_word_embeddings=tied)
        want = load_model(path)(IDS)
        edit_config(path, tie_word_embeddings=...)
        assert mx.array_equal(load_model(path)(IDS), want)


def test_stop_tokens_are_a_union(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", eos_token_id=[7, 9])
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 11}))
    assert stop_tokens(path) == {7, 9, 11}
    _, tokenizer = flashnorm_mlx.load(path)
    assert tokenizer.eos_token_ids == {0, 7, 9, 11}


def test_llama_2_needs_no_rope_theta_but_others_do(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    want = load_model(path)(IDS)
    edit_config(path, rope_theta=..., transformers_version="4.31.0.dev0")
    assert mx.array_equal(load_model(path)(IDS), want)
    edit_config(path, transformers_version="5.1.0")
    with pytest.raises(FlashNormError, match="rope_theta is missing"):
        load_model(path)
    edit_config(path, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    assert mx.array_equal(load_model(path)(IDS), want)


def test_generate_and_public_api(tmp_path: Path) -> None:
    model, tokenizer = flashnorm_mlx.load(write_checkpoint(tmp_path / "m"))
    text = flashnorm_mlx.generate(model, tokenizer, "w5 w6", max_tokens=4)
    stock, stock_tokenizer = mlx_lm.load(str(tmp_path / "m"))
    assert text == mlx_lm.generate(stock, stock_tokenizer, "w5 w6", max_tokens=4)
    pieces = flashnorm_mlx.stream_generate(model, tokenizer, "w5 w6", max_tokens=4)
    assert "".join(p.text for p in pieces) == text


# what is said of bad input

CONFIG_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "bert"}, "model_type 'bert' is not supported"),
    ({"model_type": ...}, "model_type None is not supported"),
    ({"model_type": ["llama"]}, "is not supported"),
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"hidden_size": "big"}, "hidden_size must be a positive integer, not 'big'"),
    ({"hidden_size": 95}, "hidden_size 95 is not a multiple of num_attention_heads 6"),
    ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer"),
    ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    ({"head_dim": 15}, "head_dim 15 is odd"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be a positive number"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
    ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "factor must be a positive number, not None"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "'dynamic' is not supported"),
    ({"rope_scaling": "linear"}, "rope_scaling must be a dict"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be a bool"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ({"layer_types": ["full_attention"] * 2 + ["odd"]}, "layer_types has 'odd'"),
    ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is missing"),
    ({"model_file": "evil.py"}, "brings its own code"),
    ({"num_hidden_layers": 2}, "model.layers.2.* not part of the model but in the files"),
    ({"num_hidden_layers": 4}, "model.layers.3.*missing from the files"),
    ({"vocab_size": 332}, r"has shape \[331, 96\], config.json asks for \[332, 96\]"),
    ({"attention_bias": True}, "missing from the files"),
    ({"quantization": {"bits": 4}}, "quantization: group_size must be a positive integer, not None"),
    ({"quantization": "4-bit"}, "quantization must be an object"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG_ERRORS, ids=[str(i) for i in range(len(CONFIG_ERRORS))])
def test_bad_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_checkpoint(tmp_path / "m", tokenizer=False)
    edit_config(path, **changes)
    with pytest.raises(FlashNormError, match=message) as caught:
        load_model(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def corrupt_header(path: Path, **changes: Any) -> None:
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"] |= changes
    new = json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def break_files(path: Path, how: str) -> None:
    file = path / "model.safetensors"
    data = file.read_bytes()
    match how:
        case "empty folder":
            for f in path.iterdir():
                f.unlink()
        case "config is not JSON":
            (path / "config.json").write_text("{")
        case "config is a list":
            (path / "config.json").write_text("[1]")
        case "config is binary":
            (path / "config.json").write_bytes(b"\xff\xfe\x00")
        case "truncated":
            file.write_bytes(data[:-10])
        case "truncated header":
            file.write_bytes(data[:100])
        case "empty file":
            file.write_bytes(b"")
        case "padded":
            file.write_bytes(data + b"x")
        case "header length lies":
            file.write_bytes((1 << 62).to_bytes(8, "little") + data[8:])
        case "header is not JSON":
            file.write_bytes(data[:8] + b"x" * 100 + data[108:])
        case "wrong dtype":
            corrupt_header(path, dtype="F16")
        case "unknown dtype":
            corrupt_header(path, dtype="F4")
        case "wrong shape":
            corrupt_header(path, shape=[97])
        case "negative shape":
            corrupt_header(path, shape=[-96])
        case "lying offsets":
            corrupt_header(path, data_offsets=[4, 388])
        case "pickle only":
            file.rename(path / "pytorch_model.bin")
        case "gguf only":
            file.rename(path / "model.gguf")
        case "other names":
            file.rename(path / "weights.safetensors")
        case "NaN" | "infinity":
            weights = dict(mx.load(str(file)).items())
            name = "model.layers.1.mlp.up_proj.weight"
            weights[name] = mx.where(mx.arange(96) == 3, float("nan" if how == "NaN" else "inf"), weights[name])
            mx.save_safetensors(str(file), weights)
        case "missing shard":
            (path / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
            )
        case "no tokenizer":
            for f in path.glob("tokenizer*"):
                f.unlink()


FILE_ERRORS = {
    "empty folder": "no config.json",
    "config is not JSON": "config.json: not JSON",
    "config is a list": "a JSON list, not an object",
    "config is binary": "config.json: not JSON",
    "truncated": "truncated or padded",
    "truncated header": "truncated, or no safetensors file",
    "empty file": "too short",
    "padded": "truncated or padded",
    "header length lies": "truncated, or no safetensors file",
    "header is not JSON": "its header is not JSON",
    "wrong dtype": "can't take",
    "unknown dtype": "dtype F4, which MLX does not know",
    "wrong shape": "can't take",
    "negative shape": "describes tensor model.norm.weight wrongly",
    "lying offsets": "does not start where the one before it ends",
    "pickle only": "pickle files only",
    "gguf only": "a GGUF file",
    "other names": "no model\\*.safetensors",
    "NaN": "up_proj.weight has values that are not finite",
    "infinity": "up_proj.weight has values that are not finite",
    "missing shard": "1 of 2 shards are missing, first model-00002",
    "no tokenizer": "the tokenizer can't be loaded",
}


@pytest.mark.parametrize("how", FILE_ERRORS)
def test_broken_files(tmp_path: Path, how: str) -> None:
    path = write_checkpoint(tmp_path / "m")
    break_files(path, how)
    with pytest.raises(FlashNormError, match=FILE_ERRORS[how]) as caught:
        flashnorm_mlx.load(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_paths_and_options(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "./none", "~/no/such/model", "none"):
        with pytest.raises(FlashNormError, match="no such folder"):
            resolve(name)
    with pytest.raises(FlashNormError, match="could not be had from the hub"):
        resolve("org/name-that-is-not-cached")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(FlashNormError, match="not a folder"):
        flashnorm_mlx.load(file)
    path = write_checkpoint(tmp_path / "m")
    for options, message in (
        ({"arm": "fast"}, "arm 'fast' is not known"),
        ({"dtype": "int8"}, "dtype 'int8' is not known"),
        ({"kernels": "best"}, "kernels 'best' is not known"),
        ({"kernels": "fused"}, "no fused kernels"),
    ):
        with pytest.raises(FlashNormError, match=message):
            flashnorm_mlx.load(path, **options)  # type: ignore[arg-type]
