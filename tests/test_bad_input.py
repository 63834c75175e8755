"""What is said of checkpoints, paths and options that can't be loaded: a line or two, with the place and the remedy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, write_checkpoint

import flashnorm_mlx
from flashnorm_mlx import FlashNormError
from flashnorm_mlx.loader import load_model, resolve

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
    ({"quantization": {"bits": 4}}, "quantization: group_size must be one of .*, not None"),
    ({"quantization": {"bits": 7, "group_size": 64}}, "quantization: bits must be one of .*, not 7"),
    ({"quantization": {"bits": 4, "group_size": 64, "mode": "x"}}, "mode 'x' is not known"),
    ({"quantization_config": {"quant_method": "bitnet"}}, "quantization by 'bitnet' is not supported"),
    ({"quantization_config": [1]}, "quantization_config must be an object"),
    ({"quantize_activations": True}, "quantize_activations is not supported"),
    ({"rope_traditional": True}, "rope_traditional is not supported"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0, and 5.0 in rope_parameters"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "each layer type are not supported"),
    ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2}}, "both default and linear"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the files hold"),
    ({"vocab_size": 1 << 40}, "vocab_size must be a positive integer"),
    ({"intermediate_size": 10**400}, "intermediate_size must be a positive integer"),
    ({"layer_types": [{"a": 1}] * 3}, "layer_types must be a list of names"),
    ({"layer_types": 5}, "layer_types must be a list"),
    ({"rope_parameters": "x"}, "rope_parameters must be an object"),
    ({"rope_scaling": {"factor": 8.0}}, "its type is missing, and its factor is 8.0"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
        "rope_scaling and rope_parameters contradict each other",
    ),
    (
        {
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
        "rope_scaling and rope_parameters contradict each other",
    ),
    ({"quantization": "4-bit"}, "quantization must be an object"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG_ERRORS, ids=[str(i) for i in range(len(CONFIG_ERRORS))])
def test_bad_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_checkpoint(tmp_path / "m", tokenizer=False)
    if "rope_parameters" in changes and "full_attention" in changes["rope_parameters"]:
        edit_config(path, rope_theta=...)
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
        case "odd index":
            (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["x"]}}')
        case "twice":
            (path / "model.more.safetensors").write_bytes(data)
        case "integers":
            weights = dict(mx.load(str(file)).items())
            weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].astype(mx.uint8)
            mx.save_safetensors(str(file), weights)
        case "config is a pipe":
            (path / "config.json").unlink()
            os.mkfifo(path / "config.json")
        case "generation config":
            (path / "generation_config.json").write_text("[]")
        case "number of digits":
            (path / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}")
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
    "odd index": "1 of 1 shards are missing",
    "twice": "both hold lm_head.weight; remove one",
    "integers": "up_proj.weight is of dtype U8",
    "config is a pipe": "config.json: not a plain file",
    "generation config": "generation_config.json: a JSON list",
    "number of digits": "config.json: not JSON",
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
    for name in ("", "~nosuchuser/m", "a" * 300, "null\0byte"):
        with pytest.raises(FlashNormError):
            resolve(name)
    for name in (tmp_path / "none", "./none", "~/no/such/model", "none"):
        with pytest.raises(FlashNormError, match="no such folder"):
            resolve(name)
    with pytest.raises(FlashNormError, match="could not be had from the hub"):
        resolve("org/name-that-is-not-cached")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(FlashNormError, match="not a folder"):
        flashnorm_mlx.load(file)
    with pytest.raises(FlashNormError, match="another name"):
        load_model(write_checkpoint(tmp_path / "m [v1]"))
    path = write_checkpoint(tmp_path / "m")
    for options, message in (
        ({"arm": "fast"}, "arm 'fast' is not known"),
        ({"dtype": "int8"}, "dtype 'int8' is not known"),
        ({"dtype": mx.int32}, "dtype mlx.core.int32 is not supported"),
        ({"dtype": 3}, "dtype 3 is not supported"),
        ({"revision": "main"}, "a folder has no revisions"),
        ({"kernels": "best"}, "kernels 'best' is not known"),
        ({"kernels": "fused"}, "need a GPU, Metal or CUDA"),
    ):
        with pytest.raises(FlashNormError, match=message):
            flashnorm_mlx.load(path, **options)  # type: ignore[arg-type]
