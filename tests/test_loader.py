"""load: stock, quantised and converted checkpoints, dtypes, stop tokens, and what is said of what can't be loaded."""

from __future__ import annotations

import gc
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import decode_runs
import mlx.core as mx
import mlx_lm
import pytest
from checkpoints import FAMILIES, edit_config, relative_error, stock_with_weights, tiny_config, tying, write_checkpoint
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as stock_load_model
from mlx_lm.utils import quantize_model
from test_decode_gemma4 import SIZES as GEMMA_4

import flashnorm_mlx
from flashnorm_mlx import FlashNormError, convert, loader
from flashnorm_mlx.architectures.base import named_arrays
from flashnorm_mlx.engine import decode
from flashnorm_mlx.engine.ahead import MadeAhead
from flashnorm_mlx.loader import load_model, stop_tokens

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
    path = quantised_checkpoint(tmp_path / "q", family, **tying(family, tied))
    model = load_model(path)
    stock, _ = stock_load_model(path)
    assert relative_error(model(IDS), stock(IDS)) <= 5e-6
    attention, _, norm, *_ = model.layers[0].parts
    assert "weight" in (norm if family != "olmo2" else model.model.norm)
    if "q_proj" in stock.layers[0].get("self_attn", ()):
        theirs = stock.layers[0].self_attn
        assert mx.array_equal(attention.qkv_proj.weight, mx.concatenate([theirs[f"{p}_proj"].weight for p in "qkv"]))


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


@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_other_quantisation_formats(tmp_path: Path, mode: str, group_size: int, bits: int, tied: bool) -> None:
    """Tables in these formats come out in bfloat16; the compute dtype is kept all the same."""
    config = tiny_config("llama", **WIDE, tie_word_embeddings=tied)
    stock, _ = stock_with_weights(config)
    stock, config = quantize_model(stock, config, group_size, bits, mode=mode)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(stock.parameters())))
    (tmp_path / "config.json").write_text(json.dumps(config))
    want = stock_load_model(tmp_path)[0](IDS)
    for arm in ("baseline", "flashnorm"):
        model = load_model(tmp_path, arm=arm, dtype="float32")
        assert model(IDS).dtype == mx.float32
        assert relative_error(model(IDS), want.astype(mx.float32)) <= 5e-6


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


@pytest.mark.parametrize("family", [*FAMILIES, "gemma4_text", "deepseek_v2", "deepseek_v3"])
def test_folded_checkpoints_of_every_family(family: str, tmp_path: Path) -> None:
    """With norms that are identities, and without these: of Gemma 1 to 3, gains of 0 stand for 1."""
    source = write_checkpoint(tmp_path / "s", family, tokenizer=False)
    want = stock_load_model(source)[0](IDS)
    convert(source, tmp_path / "t", quantize=False)
    assert relative_error(load_model(tmp_path / "t")(IDS), want) <= 5e-6
    weights = dict(mx.load(str(tmp_path / "t" / "model.safetensors")).items())
    identity = 0.0 if family in ("gemma", "gemma2", "gemma3_text") else 1.0
    strict = {k: v for k, v in weights.items() if "norm" not in k or not mx.all(v == identity).item()}
    assert len(strict) < len(weights)
    mx.save_safetensors(str(tmp_path / "t" / "model.safetensors"), strict, metadata={"format": "mlx"})
    (tmp_path / "t" / "model.safetensors.index.json").unlink(missing_ok=True)
    edit_config(tmp_path / "t", flashnorm=True)
    assert relative_error(load_model(tmp_path / "t")(IDS), want) <= 5e-6


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


@pytest.mark.parametrize(
    ("family", "options", "pieces"),
    [
        ("llama", {"num_hidden_layers": 12, "tie_word_embeddings": True}, 14),
        ("llama", {"num_hidden_layers": 12, "tie_word_embeddings": False}, 15),
        ("gpt2", {"n_layer": 12}, 15),
        ("gemma4_text", {**GEMMA_4, "vocab_size_per_layer_input": 4096}, 10),
    ],
)
def test_loading_takes_little_more_than_the_model(
    tmp_path: Path, family: str, options: dict[str, Any], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves into a kernel's buffer is there twice meanwhile: the largest moves when there is little else."""
    path = decode_runs.checkpoint(tmp_path / "m", family, bits=4, vocab_size=4096, **options)
    seen: list[Any] = []
    monkeypatch.setattr(loader, "backend", lambda: "cuda")
    monkeypatch.setattr(decode.DecodeStep, "failure", lambda *args: seen.append("step") or "")  # nothing is compiled
    monkeypatch.setattr(MadeAhead, "try_prompt", lambda model: seen.append("prompt"))
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(path, kernels="fused", progress=lambda *step: seen.append(step))
    size = sum(a.nbytes for _, a in named_arrays(model))
    assert mx.get_peak_memory() - before < 1.25 * size
    assert mx.get_active_memory() - before < 1.1 * size
    read = [("loading", i + 1, pieces) for i in range(pieces)]  # all of it before a step is traced
    assert seen == [*read, ("compiling kernels", 0, 1), "step", "step", "prompt", ("compiling kernels", 1, 1)]
    model.renew()  # nothing is exchanged behind it
    assert model.kernels == "fused"


def test_adapters_that_folding_would_make_wrong_are_refused(tmp_path: Path) -> None:
    """Those on o_proj and down_proj, which no norm is in front of, run."""
    options = {"rank": 4, "scale": 1.0, "dropout": 0.0}
    refused = pytest.raises(FlashNormError, match=r"LoRALinear in the place of a linear layer .*mlx_lm\.fuse")
    for keys, found in ((["self_attn.o_proj", "mlp.down_proj"], nullcontext()), (None, refused)):
        model = load_model(write_checkpoint(tmp_path / str(keys is None)))
        linear_to_lora_layers(model, 2, options | ({"keys": keys} if keys else {}))
        with found:
            mx.eval(model(IDS))
