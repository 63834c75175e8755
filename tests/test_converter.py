"""convert: what it writes, that it is exact but for rounding, that stock mlx-lm loads it, and that it fails cleanly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from checkpoints import FAMILIES, edit_config, relative_error, tying, write_checkpoint

from flashnorm_mlx import FlashNormError, architectures, converter, fold
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.converter import Options, convert, convert_with_report
from flashnorm_mlx.loader import load_model

IDS = mx.array([[5, 6, 7, 8, 300, 2]])
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_alone_is_exact_and_stock_loads_it(tmp_path: Path, family: str, tied: bool) -> None:
    source = write_checkpoint(tmp_path / "s", family, shards=3, **tying(family, tied))
    report = convert_with_report(source, tmp_path / "t", Options(quantize=False))
    want, source_tokenizer = mlx_lm.load(str(source))
    stock, tokenizer = mlx_lm.load(str(tmp_path / "t"))
    assert relative_error(stock(IDS), want(IDS)) <= 5e-6
    assert relative_error(load_model(tmp_path / "t")(IDS), want(IDS)) <= 5e-6
    assert tokenizer.encode("w5 w6") == source_tokenizer.encode("w5 w6")
    assert report.check.fold_error <= 5e-6
    assert report.check.target_error <= 5e-6
    assert report.target_bytes == open_checkpoint(tmp_path / "t").nbytes
    arrays = open_checkpoint(tmp_path / "t").arrays()
    folded = [step for step in report.plan.steps if not step.kept]
    assert len(folded) >= 3 * sum("{i}" in fold.norm for fold in architectures.find(family).FOLDS if fold.into)
    for step in folded:
        identity = 0.0 if step.fold.plus_one else 1.0
        assert mx.all(arrays[f"{step.norm}.weight"] == identity).item()
    kept = json.loads((tmp_path / "t" / "config.json").read_text())["flashnorm"]["kept"]
    assert (report.plan.steps[-1].norm in kept) == next(iter(tying(family, tied).values()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_quantised_is_the_quantised_fold(tmp_path: Path, bits: int, group_size: int) -> None:
    """Tensor by tensor: fold in float32, then quantise, as float64 numpy and mx.quantize say."""
    source = write_checkpoint(tmp_path / "s", dtype=mx.bfloat16, **WIDE)
    target = convert(source, tmp_path / "t", bits=bits, group_size=group_size)
    before, after = open_checkpoint(source).arrays(), open_checkpoint(target).arrays()
    gain = np.array(before["model.layers.1.post_attention_layernorm.weight"].astype(mx.float32)).astype(np.float64)
    name = "model.layers.1.mlp.up_proj"
    weight = np.array(before[f"{name}.weight"].astype(mx.float32)).astype(np.float64)
    folded = mx.array((weight * gain).astype(np.float32))
    packed, scales, biases = mx.quantize(folded, group_size=group_size, bits=bits)
    assert mx.mean(packed == after[f"{name}.weight"]).item() > 0.99  # a rounding of float64 may fall either way
    assert mx.allclose(scales.astype(mx.bfloat16), after[f"{name}.scales"], rtol=1e-2).item()
    assert after[f"{name}.biases"].dtype == biases.astype(mx.bfloat16).dtype
    stock, _ = mlx_lm.load(str(target))
    stock.set_dtype(mx.float32)
    assert relative_error(load_model(target)(IDS), stock(IDS)) <= 5e-6


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": ...}),
        ("llama", {"rope_theta": ..., "rope_parameters": {"rope_theta": 77777.0, "rope_type": "default"}}),
        ("llama", {"rope_theta": None, "rope_parameters": {"rope_theta": 5e3, "rope_type": "linear", "factor": 2.0}}),
        ("qwen3", {"head_dim": None}),
    ],
)
def test_what_stock_reads_differently_is_said(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Keys that stock mlx-lm defaults or overlooks are written out, so that it runs what we ran."""
    source = write_checkpoint(tmp_path / "s", family, **({"head_dim": 16} if family == "qwen3" else {}))
    edit_config(source, **changes)
    want = load_model(source, arm="baseline", dtype="float32")(IDS)
    stock, _ = mlx_lm.load(str(convert(source, tmp_path / "t", quantize=False)))
    assert relative_error(stock(IDS), want) <= 5e-6


def test_norms_that_a_folded_source_dropped_come_back(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s")
    want = load_model(source)(IDS)
    folded = load_model(source, arm="none", lazy=True).sanitize(dict(mx.load(str(source / "model.safetensors"))))
    mx.save_safetensors(str(source / "model.safetensors"), {k: v for k, v in folded.items() if "norm" not in k})
    edit_config(source, flash_norm=True)
    stock, _ = mlx_lm.load(str(convert(source, tmp_path / "t", quantize=False)))
    assert relative_error(stock(IDS), want) <= 5e-6


def test_rows_that_are_not_whole_groups_stay_unquantised(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", hidden_size=96, intermediate_size=128)
    target = convert(source, tmp_path / "t", group_size=128)
    names = open_checkpoint(target).tensors
    assert "model.layers.0.mlp.down_proj.scales" in names
    assert "model.layers.0.mlp.up_proj.scales" not in names
    stock, _ = mlx_lm.load(str(target))
    assert relative_error(load_model(target)(IDS), stock(IDS)) <= 5e-6


def test_what_is_carried_over(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", **WIDE)
    (source / "generation_config.json").write_text('{"eos_token_id": 3, "temperature": 0.5}')
    (source / "LICENSE").write_text("ours")
    (source / "code.py").write_text("raise SystemExit")
    (source / "notes.txt").write_text("private")
    target = convert(source, tmp_path / "t", dtype="float16")
    for name in ("generation_config.json", "LICENSE", "tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not (target / "code.py").exists()
    assert not (target / "notes.txt").exists()
    config = json.loads((target / "config.json").read_text())
    assert config["quantization"] == {"bits": 4, "group_size": 64, "mode": "affine"} == config["quantization_config"]
    assert config["flashnorm"]["folded"]["model.layers.0.input_layernorm"] == [
        f"model.layers.0.self_attn.{p}_proj" for p in "qkv"
    ]
    assert open_checkpoint(target).tensors["model.norm.weight"].dtype == "F16"


def test_shards_are_small_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "s")
    from flashnorm_mlx import checkpoint

    write = checkpoint.write_shards
    monkeypatch.setattr(converter, "write_shards", lambda *a, **k: write(*a, **k, shard_bytes=200_000))
    target = convert(source, tmp_path / "t", quantize=False)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert set(index["weight_map"]) == set(open_checkpoint(target).tensors)
    stock, _ = mlx_lm.load(str(target))
    want, _ = mlx_lm.load(str(source))
    assert relative_error(stock(IDS), want(IDS)) <= 5e-6


def test_peak_memory_is_a_tensor_and_a_shard_not_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many layers and small shards, MLX never holds more than a part of the source, the self-check included."""
    from flashnorm_mlx import checkpoint

    source = write_checkpoint(
        tmp_path / "s", num_hidden_layers=40, dtype=mx.bfloat16, tokenizer=False, shards=4, **WIDE
    )
    write, size = checkpoint.write_shards, open_checkpoint(source).nbytes
    monkeypatch.setattr(converter, "write_shards", lambda *a, **k: write(*a, **k, shard_bytes=size // 8))
    for quantize in (True, False):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        convert(source, tmp_path / f"t{quantize}", quantize=quantize)
        assert mx.get_peak_memory() - before < 0.6 * size


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "s")


def test_target_exists_or_is_the_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s")
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("keep")
    for target, message in (
        (source, "is the source"),
        (tmp_path / "t", "exists already"),
        (tmp_path / "no" / "t", "no such folder"),
    ):
        with pytest.raises(FlashNormError, match=message):
            convert(source, target)
    assert (tmp_path / "t" / "mine").read_text() == "keep"
    assert before == {p.name: p.read_bytes() for p in source.iterdir()}
    assert leftovers(tmp_path) == ["t"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits 3 is not supported"),
        ({"group_size": 48}, "group size 48 is not supported"),
        ({"dtype": "int4"}, "dtype 'int4' is not known"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashNormError, match=message):
        convert(write_checkpoint(tmp_path / "s"), tmp_path / "t", **options)
    assert not leftovers(tmp_path)


def test_already_quantised(tmp_path: Path) -> None:
    convert(write_checkpoint(tmp_path / "s"), tmp_path / "t")
    with pytest.raises(FlashNormError, match="already quantised"):
        convert(tmp_path / "t", tmp_path / "u")
    assert leftovers(tmp_path) == ["t"]


def test_converting_a_folded_checkpoint_folds_nothing_twice(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", **WIDE)
    convert(source, tmp_path / "f", quantize=False)
    convert(tmp_path / "f", tmp_path / "a")
    convert(source, tmp_path / "b")
    a, b = (open_checkpoint(tmp_path / n).arrays() for n in "ab")
    assert a.keys() == b.keys()
    assert all(mx.array_equal(a[k], b[k]) for k in a)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(FlashNormError, match="MB are needed"):
        convert(write_checkpoint(tmp_path / "s"), tmp_path / "t")
    assert not leftovers(tmp_path)


def test_a_bad_fold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check: were the folding wrong, nothing would be written."""
    monkeypatch.setattr(fold, "fold_gain", lambda weight, gain, **_: weight)
    with pytest.raises(FlashNormError, match=r"differ from the source's by .*nothing was written"):
        convert(write_checkpoint(tmp_path / "s"), tmp_path / "t")
    assert not leftovers(tmp_path)


def test_nan_in_the_source_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s")
    weights = dict(mx.load(str(source / "model.safetensors")).items())
    weights["model.layers.0.mlp.up_proj.weight"] *= float("nan")
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    with pytest.raises(FlashNormError, match=r"not finite|nothing was written"):
        convert(source, tmp_path / "t")
    assert not leftovers(tmp_path)


def test_float16_overflow_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s")
    weights = dict(mx.load(str(source / "model.safetensors")).items())
    weights["model.layers.0.input_layernorm.weight"] *= 1e6
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    with pytest.raises(FlashNormError, match=r"off by inf|not finite"):
        convert(source, tmp_path / "t", quantize=False, dtype="float16")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_half_way(tmp_path: Path, signal_name: str) -> None:
    """A signal while shards are being written: exit code 130, one line, and nothing left behind."""
    import signal

    write_checkpoint(tmp_path / "s", tokenizer=False)
    slow = (
        "import sys, time\n"
        "from flashnorm_mlx import cli, fold\n"
        "inner = fold.fold_gain\n"
        "def slow(*a, **k):\n    print('folding', flush=True); time.sleep(0.3); return inner(*a, **k)\n"
        "fold.fold_gain = slow\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run behind
        f"sys.exit(cli.main(['convert', {str(tmp_path / 's')!r}, {str(tmp_path / 't')!r}]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    while "folding" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.4)
    process.send_signal(getattr(signal, signal_name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1] == "flashnorm: interrupted"
    assert "Traceback" not in err
    assert not leftovers(tmp_path)


def test_misfit_of_config_and_weights(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s")
    edit_config(source, num_hidden_layers=2)
    with pytest.raises(FlashNormError, match="not part of the model"):
        convert(source, tmp_path / "t")
    assert not leftovers(tmp_path)
