"""The benchmarks' harness, not their speed: they run, and the README shows what their files say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    """Imports a script of bench/ by name."""
    monkeypatch.syspath_prepend(ROOT / "bench")

    def script(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return script


def test_the_readmes_tables_are_the_results(bench) -> None:  # type: ignore[no-untyped-def]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench("tables").with_tables(readme) == readme
    for table in ("decode", "quality"):
        rows = readme.partition(f"<!-- table: {table} -->")[2].partition("<!-- end -->")[0].count("\n| ")
        assert rows >= 6, table


def test_decode_compares_all_contestants_on_one_checkpoint(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    decode = bench("decode")
    folder = decode.rewrite(ROOT / "models" / "demo", tmp_path / "demo", mx.float32, 4)
    found = decode.compare(folder, tokens=3, repeat=2)
    assert list(found) == ["mlx-lm", "baseline", "flashnorm", "none"]
    assert found["mlx-lm"]["over_mlx_lm"] == 1
    for arm in found.values():
        assert len(arm["runs"]) == 2
        assert min(arm["runs"]) <= arm["tokens_per_second"] <= max(arm["runs"])


#: Millions of parameters, as their makers give them.
PUBLIC = {
    "SmolLM2-135M": 134.5,
    "SmolLM2-360M": 361.8,
    "OpenELM-270M": 271.5,
    "Gemma-3-270M": 268.1,
    "Gemma-3-1B": 999.9,
    "Qwen3-0.6B": 596.0,
    "Qwen2.5-0.5B": 494.0,
    "Llama-3.2-1B": 1235.8,
    "Llama-3.1-8B": 8030.3,
    "SmolLM2-1.7B": 1711.4,
    "Llama-2-7B": 6738.4,
    "Llama-3.2-3B": 3212.7,
    "Mistral-7B": 7248.0,
    "Qwen3-1.7B": 1720.6,
    "Qwen3-4B": 4022.5,
    "Qwen3-8B": 8190.7,
    "OLMo-2-1B": 1484.9,
    "OLMo-2-7B": 7298.6,
    "DeepSeek-V2-Lite": 15706.5,
    "OpenELM-450M": 457.2,
    "OpenELM-1.1B": 1079.9,
    "OpenELM-3B": 3036.6,
    "Gemma-2B": 2506.2,
    "Gemma-2-2B": 2614.3,
    "Gemma-3-4B": 3880.3,
    "GPT-2": 124.4,
    "StableLM-2-1.6B": 1644.5,
    "OLMo-1B": 1176.8,
    "Phi-3-mini": 3821.1,
}


def test_shapes_have_the_public_models_sizes(bench) -> None:  # type: ignore[no-untyped-def]
    random_model = bench("random_model")
    found = {file.stem: random_model.parameters(file.stem) for file in random_model.SHAPES.glob("*.json")}
    assert {name: round(count / 1e6, 1) for name, count in found.items()} == PUBLIC


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A shape small enough to measure here."""
    from flashnorm_mlx.architectures.llama import TINY

    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY | {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 192}))
    return str(file)


def test_gpu_measures_each_row_and_tables_show_them(bench, tiny: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "results" / "here"
    arguments = f"gpu.py --shape missing {tiny} --dtype float32 --tokens 3 --repeat 2 --depth 16 20 --batch 2"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--prefill", "8", "--out", str(out)])
    bench("gpu").main()
    rows = json.loads((out / "gpu-decode.json").read_text())["rows"]
    assert [row["depth"] for row in rows] == [16, 20]
    for row in rows:
        assert list(row["contestants"]) == ["mlx-lm", "flashnorm", "baseline", "none", "reference"]
        for found in row["contestants"].values():
            assert len(found["runs"]) == 2
            assert found["peak_bytes"] > found["model_bytes"] > 0
    tables = bench("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    lines = {name: table().count("\n| cpu | tiny, 4-bit float32 |") for name, table in tables.TABLES.items()}
    assert lines == {
        "decode": 0,
        "quality": 0,
        "gpu-decode": 1,
        "gpu-depth": 2,
        "gpu-batch": 1,
        "gpu-prefill": 1,
        "gpu-kernels": 0,
        **dict.fromkeys(("epsilon", "multipliers", "quantised-layer", "quantised-demo"), 0),
    }


def test_a_contestant_that_raises_has_its_error_and_the_others_go_on(bench) -> None:  # type: ignore[no-untyped-def]
    def measure(model: float) -> float:
        if model < 0:
            raise RuntimeError("out of memory\nat line 7")
        return model

    models = {"mlx-lm": 2.0, "flashnorm": 3.0, "none": -1.0}
    facts = {name: {"model_bytes": 1} for name in models} | {"baseline": {"error": "no such family"}}
    found = bench("contestants").compare(models, facts, measure, 3)
    assert found["flashnorm"]["runs"] == [3.0, 3.0, 3.0]
    assert found["flashnorm"]["over_mlx_lm"] == 1.5
    assert "over_none" not in found["flashnorm"]
    assert found["none"] == {"model_bytes": 1, "error": "RuntimeError: out of memory"}
    assert found["baseline"] == {"error": "no such family"}


def test_rows_replace_their_like_only(bench, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    record = bench("record")
    for depth, speed in ((16, 1), (1024, 2), (16, 3)):
        record.save_row(tmp_path, "gpu-decode", {"shape": "a", "depth": depth, "speed": speed}, ("shape", "depth"))
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    record.save_row(tmp_path, "gpu-decode", {"shape": "a", "depth": 16, "speed": 4}, ("shape", "depth"))
    rows = json.loads((tmp_path / "gpu-decode.json").read_text())["rows"]
    assert [(row["depth"], row["speed"]) for row in rows] == [(1024, 2), (16, 3), (16, 4)]
    assert rows[-1]["environment"] == {"MLX_MAX_OPS_PER_BUFFER": "7"}
    assert record.folder_of("gpu (NVIDIA H200)") == "nvidia-h200"


def test_kernels_are_timed_on_every_operation(bench, tiny: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    kernels = bench("kernels")
    monkeypatch.setattr(kernels, "ours", lambda operation, setting: operation.mlx)
    arguments = f"kernels.py --shape {tiny} --dtype float32 --bits 0 --depth 20 --footprint 0.01 --gigabytes 0.001"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--out", str(tmp_path)])
    kernels.main()
    rows = json.loads((tmp_path / "gpu-kernels.json").read_text())["rows"]
    assert len(rows) == 7
    for row in rows:
        assert row["floor_us"] > 0
        assert row["mlx"]["launches"] == row["ours"]["launches"] >= 64
