"""The experiments with folds: they run, and what they find obeys the laws that it has to."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
Script = Callable[[str], Any]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Script:
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


def run(script: Any, arguments: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    name = script.__name__
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split(), "--out", str(out)])
    script.main()
    return json.loads((out / f"{name}.json").read_text())


def test_their_page_shows_the_results(bench: Script) -> None:
    tables, page = bench("tables"), (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert tables.with_tables(page) == page
    for table, least in (("epsilon", 6), ("multipliers", 9), ("quantised-layer", 8), ("quantised-demo", 7)):
        assert page.partition(f"<!-- table: {table} -->")[2].partition("<!-- end -->")[0].count("\n| ") > least, table
    headings = "\n".join(line for line in page.splitlines() if line.startswith("## "))
    for script in (ROOT / "bench").glob("*.py"):
        assert re.search(rf"\b{script.stem}\b", headings), script.stem


# ---- epsilon ----------------------------------------------------------------------------------------------------


def test_epsilon_kept_is_wrong_and_the_exact_one_is_not(
    bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epsilon = bench("epsilon")
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 112, "head_dim": 24, "vocab_size": 300}
    monkeypatch.setattr(epsilon, "CONFIG", epsilon.CONFIG | sizes)
    found = run(epsilon, "--rms 1 0.02 --eps 1e-5 --seeds 3", tmp_path, monkeypatch)
    large, small = found["rows"]
    assert (large["residual_rms"], small["residual_rms"]) == (1.0, 0.02)
    for row in (large, small):
        assert row["measured_rms"] == pytest.approx(row["residual_rms"], rel=0.1)
        assert all(len(runs) == 3 for runs in row["runs"].values())
        assert row["errors"]["exact"] < 5e-6
    assert small["errors"]["kept"] > 1e-3
    assert large["errors"]["kept"] < 1e-4


# ---- multipliers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen3-0.6B", "Gemma-3-1B", "OpenELM-270M"])
def test_multipliers_saved_are_the_papers(bench: Script, shape: str) -> None:
    multipliers = bench("multipliers")
    config = bench("random_model").read_shape(shape)
    for kind in multipliers.measure(shape)["kinds"]:
        s, ffn, attention = kind["sizes"], kind["ffn"], kind["attention"]
        n, f, h = s["n_ffn"], s["up"], s["h"]
        assert n == s["n_attention"] == config.get("hidden_size", config.get("model_dim"))
        assert h == config["head_dim"] if "head_dim" in config else n == config["num_attention_heads"] * h
        assert f == config.get("intermediate_size", f)
        assert ffn["stock"] - ffn["folded"] == attention["stock"] - attention["folded"] == n
        relu = multipliers.relu_forms(s)
        assert relu["deferred"] - relu["relu"] == f - n  # §2.1
        assert ffn["deferred"] - ffn["glu"] == f - n  # §2.2
        assert ffn["deferred"] - ffn["reglu"] == 2 * f - n
        queries, keys = s["q"] // h, s["k"] // h
        plain = multipliers.attention_forms(s | {"qk_norm": 0, "biased": 0})
        assert plain["deferred"] - plain["rope"] == h * (queries + keys) - h  # §3
        all_heads = multipliers.attention_forms(s | {"qk_norm": 0, "biased": 0, "k": s["q"]})
        assert all_heads["deferred"] - all_heads["rope"] == 2 * h * queries - h  # as the paper has it
        if s["qk_norm"]:  # the scale of q and k is gone (§4.1), and their gains are 4 tables' (§4.2)
            assert attention["deferred"] - attention["cancelled"] == 2 * h * (queries + keys) - 4 * h
        biased = bool(s["biased"])
        assert biased == (config["model_type"] == "qwen2")
        assert (attention["rope"] == attention["deferred"]) == (biased or bool(s["qk_norm"]))


def test_multipliers_add_up_and_leave_out_what_the_paper_has_not(
    bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multipliers = bench("multipliers")
    rows = run(multipliers, "--shape SmolLM2-135M OpenELM-270M DeepSeek-V2-Lite", tmp_path, monkeypatch)["rows"]
    assert "DeepSeek-V2-Lite: left out" in capsys.readouterr().out
    smol, elm = rows
    # n = 576, f = 1536, 9 and 3 heads of 64
    assert smol["mean"] == {
        "stock": 4 * 576,
        "folded": 2 * 576,
        "deferred": 15 * 64 + 2 * 1536,
        "glu": 15 * 64 + 1536 + 576,
        "rope": 4 * 64 + 1536 + 576,
        "cancelled": 4 * 64 + 1536 + 576,
        "reglu": 4 * 64 + 576,
        "engine": 4 * 64 + 2 * 1536,
    }
    assert smol["matrix_products"] == 576 * (15 + 9) * 64 + 3 * 576 * 1536
    assert sum(kind["count"] for kind in elm["kinds"]) == elm["layers"] == 16
    assert len(elm["kinds"]) == 16  # each layer is of another width


# ---- quantisation -----------------------------------------------------------------------------------------------


def test_quantised_layers_obey_what_follows_from_their_making(bench: Script) -> None:
    quantisation = bench("quantisation")

    def error(weights: str, spread: float, bits: int = 4, group_size: int = 64) -> dict[str, float]:
        return quantisation.layer_error(weights, spread, bits, group_size, seed=0, size=128)

    for weights in ("independent", "compensating"):
        none = error(weights, 0.0)
        assert none["fold"] == pytest.approx(none["keep"], rel=1e-4)
        assert 10 < none["fold"] / error(weights, 0.0, bits=8)["fold"] < 25  # 16 times the steps
        assert error(weights, 0.3, group_size=32)["fold"] < error(weights, 0.3, group_size=128)["fold"]
    # uniform rows quantise best: those of W for independent weights, those of W diag(g) for compensating ones
    assert error("independent", 1.0)["keep"] < 0.8 * error("independent", 1.0)["fold"]
    assert error("compensating", 1.0)["fold"] < 0.8 * error("compensating", 1.0)["keep"]


def test_quantisation_of_the_demo_and_its_plot(bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantisation = bench("quantisation")
    for name, value in (("BITS", (4,)), ("GROUPS", (64,)), ("SPREADS", (0.1, 0.3, 0.5, 1.0)), ("WINDOW", 64)):
        monkeypatch.setattr(quantisation, name, value)
    found = run(quantisation, "--quick", tmp_path, monkeypatch)
    assert len(found["synthetic"]) == 8
    assert 0 < found["demo_gains"]["spread"] < 2
    full, fold, keep, stock = found["demo"]
    assert [row["form"] for row in found["demo"]] == ["full precision", "fold", "keep", "mlx-lm"]
    assert full["kl"] == 0
    assert (keep["perplexity"], keep["kl"]) == pytest.approx((stock["perplexity"], stock["kl"]), rel=1e-3)
    assert fold["kl"] != keep["kl"] and 1e-4 < fold["kl"] < 0.1
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib, which is not installed")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert bench("quantisation_plot").plot(tmp_path / "quantisation.json").stat().st_size > 10_000
