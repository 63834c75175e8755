"""The benchmarks' harness, not their speed: they run, and the README shows what their files say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.measure import command, files
from flashnorm_mlx.measure.shapes import read_shape

ROOT = Path(__file__).parent.parent


Script = Callable[[str], Any]
ARMS = ["mlx-lm", "baseline", "flashnorm", "none"]


@pytest.fixture(autouse=True)
def small_memory_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "bandwidth", lambda timer: {"read": 1e9, "copy": 2e9})


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


@pytest.fixture
def run(bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a script into a folder of its own."""

    def run(name: str, arguments: str = "--quick") -> Path:
        out = tmp_path / "results" / "here"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split(), "--out", str(out)])
        bench(name).main()
        return out

    return run


def rows_of(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text())["rows"])


# ---- tables -------------------------------------------------------------------------------------------------------


def test_the_readmes_tables_are_the_results(bench: Script) -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "bench/README.md")]
    for page in pages:
        assert bench("tables").with_tables(page) == page
    for table in ("speed", "depth", "batch", "prefill", "quality"):
        rows = "".join(pages).partition(f"<!-- table: {table} -->")[2].partition("<!-- end -->")[0].count("\n| ")
        assert rows >= 4, table


def test_every_table_has_its_place(bench: Script) -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "bench/README.md")]
    placed = set(re.findall(r"<!-- table: (\S+) -->", "".join(pages)))
    assert placed | {"gpu-kernels"} == set(bench("tables").TABLES)


def test_reports_of_any_name_and_device_have_their_rows(
    bench: Script, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("speed")
    report = json.loads((tmp_path / "results" / "here" / "speed-tiny-4bit-float32.json").read_text())
    report["machine"] |= {"device": "gpu (Apple M1)", "chip": "Apple M1", "environment": {"MLX_X": "7"}}
    del report["rows"][0]["arms"]["baseline"], report["rows"][0]["arms"]["none"]["tokens_per_second"]
    (tmp_path / "results" / "apple-m1").mkdir()
    (tmp_path / "results" / "apple-m1" / "mine.json").write_text(json.dumps(report))
    (tmp_path / "results" / "apple-m1" / "other.json").write_text("{}")
    tables = bench("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    speed = tables.TABLES["speed"]()
    lines = [line for line in speed.splitlines() if "tiny" in line]
    assert len(lines) == 2
    gpu, cpu = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert (gpu[0], gpu[2]) == ("gpu (Apple M1)", "4-bit, float32, MLX_X=7")
    assert cpu[0].startswith("cpu")
    arm = report["rows"][0]["arms"]["flashnorm"]
    head = [cell.strip() for cell in speed.splitlines()[0].split("|")[1:-1]]
    assert gpu[head.index("baseline")] == gpu[head.index("none")] == "–"
    ratio = arm["over_none"]
    assert gpu[head.index("flashnorm ÷ none")] == f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    assert gpu[head.index("launches")].endswith(f" → {arm['launches']}")
    counts = {name: tables.TABLES[name]().count("tiny") for name in ("depth", "batch", "prefill")}
    assert counts == {"depth": 4, "batch": 2, "prefill": 2}
    assert tables.TABLES["memory"]() == "*Not measured yet.*"


def test_tables_show_what_the_scripts_measured(
    bench: Script, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in ("norm_share", "memory", "norm_then_project"):
        run(script)
    tables = bench("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    lines = {
        name: tables.TABLES[name]().count("| cpu | tiny") for name in ("norm-share", "memory", "norm-then-project")
    }
    assert lines == {"norm-share": 2, "memory": 2 * 2 * 2, "norm-then-project": 2}  # one number of rows is not shown


# ---- the scripts --------------------------------------------------------------------------------------------------


def test_speed_writes_each_report_and_goes_on_after_errors(
    bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = bench("reports")
    tiny = reports.tiny(tmp_path)
    sizes = "--depth 4 --batch 2 --prefill 6 --tokens 3 --repeat 2"
    arguments = f"speed.py --shape missing {tiny} --bits 0 4 --arms mlx-lm none {sizes} --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    with pytest.raises(SystemExit, match="2 failed"):
        bench("speed").main()
    assert "missing: no such shape" in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"speed-tiny-float32.json", "speed-tiny-4bit-float32.json"}
    report = files.read(str(tmp_path / "out" / "speed-tiny-4bit-float32.json"))
    assert (report["model"]["converted"], report["model"]["bits"]) == (True, 4)
    rows = [(r["test"], r["prompt"], r["generated"], r["depth"], r["batch"]) for r in report["rows"]]
    assert rows == [("decode", 0, 3, 4, 1), ("decode", 0, 3, 16, 2), ("prefill", 6, 0, 0, 1)]
    for row in report["rows"]:
        assert list(row["arms"]) == ["mlx-lm", "none"]
        assert all(len(arm["tokens_per_second"]["runs"]) == 2 for arm in row["arms"].values())


def test_no_more_positions_than_a_model_has(bench: Script) -> None:
    from flashnorm_mlx.measure.loop import Trial

    reports = bench("reports")
    short, long = Trial("decode", 0, 24, 1000, 1), Trial("decode", 0, 25, 1000, 1)
    assert read_shape("GPT-2")["n_positions"] == 1024
    assert reports.possible("GPT-2", [short, long]) == [short]
    assert reports.possible("Llama-2-7B", [short, long]) == [short, long]
    with pytest.raises(FlashNormError, match="no positions"):
        reports.measured("GPT-2", 4, [], None, 1)


def test_norm_share_is_what_removing_them_saves(bench: Script, run: Callable[..., Path]) -> None:
    rows = rows_of(run("norm_share") / "norm_share.json")
    assert [(row["shape"], row["bits"]) for row in rows] == [("tiny", 4), ("tiny", None)]
    for row in rows:
        assert set(row["step_us"]) == set(row["launches"]) == {"baseline", "flashnorm", "none"}
        assert row["launches"]["none"] < row["launches"]["baseline"]
        assert row["norms"]["low"] <= row["norms"]["value"] <= row["norms"]["high"] < 1
    saved = bench("norm_share").saved
    assert saved({"value": 1.25, "low": 1.0, "high": None}) == {"value": pytest.approx(0.2), "low": 0.0, "high": None}
    assert saved(None) is None


def test_memory_is_each_arms_own(run: Callable[..., Path]) -> None:
    rows = rows_of(run("memory", f"--quick --arms {' '.join(ARMS)}") / "memory.json")
    assert [(row["bits"], row["prompt"], row["batch"]) for row in rows] == [
        (bits, prompt, batch) for bits in (4, None) for prompt, batch in ((6, 1), (16, 2))
    ]
    for row in rows:
        assert list(row["arms"]) == ARMS
        for found in row["arms"].values():
            assert found["loading"] >= found["active"] > 0.9 * row["file"] > 0
            assert min(found["prompt"], found["decode"]) > found["active"]
    assert rows[2]["arms"]["none"]["active"] > 3 * rows[0]["arms"]["none"]["active"]


def test_a_norm_and_its_projection_in_every_form(bench: Script, run: Callable[..., Path]) -> None:
    rows = rows_of(run("norm_then_project") / "norm_then_project.json")
    assert [(row["bits"], row["rows"]) for row in rows] == [(4, 1), (4, 9), (None, 1), (None, 9)]
    for row in rows:
        assert list(row["forms"]) == ["sequential", "weightless", "deferred", "two streams", "product"]
        assert all(cost["device_us"] >= 0 and cost["host_us"] > 0 for cost in row["forms"].values())


@pytest.mark.parametrize("bits", [0, 4])
def test_the_forms_are_one_function(bench: Script, bits: int) -> None:
    script = bench("norm_then_project")
    (layer, *_) = script.layers(64, 96, bits, mx.float32, 0)
    x, gain = mx.random.normal((3, 64)), mx.ones(64)
    forms = script.forms(gain, 3, mx.new_stream(mx.default_device()))
    want = forms.pop("sequential")(x, layer)
    assert mx.abs(forms.pop("product")(x, layer) - want).max().item() > 0.01
    for name, form in forms.items():
        assert mx.allclose(form(x, layer), want, atol=1e-5), name


def test_all_runs_every_script_and_says_which_failed(
    bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = bench("all")
    scripts = {f.stem for f in (ROOT / "bench").glob("*.py") if "def main(" in f.read_text()}
    assert {job.script for job in everything.JOBS} == scripts - {"all", "record"}
    for where in ("gpu", "cpu"):
        run = [command[0] for command in everything.commands(where, tmp_path)]
        assert run[-1] == "tables"
        assert ("norm_share" in run, "quality" in run) == (where == "gpu", where == "cpu")
    multipliers = next(job for job in everything.JOBS if job.script == "multipliers")
    monkeypatch.setattr(everything, "JOBS", [everything.Job("missing", "", "", ""), multipliers])
    assert everything.main(["--quick", "--out", str(tmp_path)]) == 1
    assert rows_of(tmp_path / "multipliers.json")
    assert "failed: missing" in capfd.readouterr().out


def test_rows_replace_their_like_only(bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = bench("record")
    for depth, speed in ((16, 1), (1024, 2), (16, 3)):
        record.save_row(tmp_path, "table", {"shape": "a", "depth": depth, "speed": speed}, ("shape", "depth"))
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    record.save_row(tmp_path, "table", {"shape": "a", "depth": 16, "speed": 4}, ("shape", "depth"))
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["depth"], row["speed"]) for row in rows] == [(1024, 2), (16, 3), (16, 4)]
    assert rows[-1]["environment"] == {"MLX_MAX_OPS_PER_BUFFER": "7"}
    assert record.folder_of("gpu (NVIDIA H200)") == "nvidia-h200"


def test_what_another_machine_measured_is_taken_over(
    bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    report = {"schema": "flashnorm-bench", "machine": {"device": "gpu (Apple M1)"}, "rows": [{"test": "decode"}]}
    table = {"device": "gpu (Apple M1)", "keys": ["shape"], "rows": [{"shape": "a", "environment": {}}]}
    for name, found in (("speed-a.json", report), ("memory.json", table)):
        (tmp_path / name).write_text(json.dumps(found))
    monkeypatch.setattr(sys, "argv", ["record.py", str(tmp_path / "speed-a.json"), str(tmp_path / "memory.json")])
    record.main()
    for name, found in (("speed-a.json", report), ("memory.json", table)):
        assert json.loads((tmp_path / "results" / "apple-m1" / name).read_text()) == found


def test_kernels_are_timed_on_every_operation(bench: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = bench("kernels")
    monkeypatch.setattr(kernels, "ours", lambda operation, setting: operation.mlx)
    arguments = "kernels.py --quick"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--out", str(tmp_path)])
    kernels.main()
    rows = json.loads((tmp_path / "gpu-kernels.json").read_text())["rows"]
    assert len(rows) == 7
    for row in rows:
        assert row["floor_us"] > 0
        assert row["mlx"]["launches"] == row["ours"]["launches"] >= 64
