"""``flashnorm bench`` as a person uses it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

import flashnorm_mlx.measure.files as files_module
from flashnorm_mlx import cli
from flashnorm_mlx.architectures.llama import TINY
from flashnorm_mlx.measure import command, memory, plot, shapes, source
from flashnorm_mlx.measure.loop import Timer

ROOT = Path(__file__).parent.parent
ARMS = ["mlx-lm", "baseline", "flashnorm", "none"]
QUICK = ("-p", "6", "-g", "3", "-r", "2")


@pytest.fixture(autouse=True)
def small_memory_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "bandwidth", lambda timer: {"read": 1e9, "copy": 2e9})


@pytest.fixture
def shape(tmp_path: Path) -> str:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY | {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 192}))
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    try:
        code = cli.main(["bench", *map(str, args)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_on_standard_output_is_clean(
    capsys: pytest.CaptureFixture[str], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = command.load_all
    monkeypatch.setattr(command, "load_all", lambda *args: print("a library talks") or load(*args))
    code, out, err = run(capsys, "--shape", shape, *QUICK, "-d", "0,9", "-b", "1,2", "--json")
    report = json.loads(out)
    assert code == 0
    assert "flashnorm" in err
    assert (report["schema"], report["version"], report["interrupted"]) == ("flashnorm-bench", 1, False)
    assert report["model"]["bits"] == 4
    assert report["model"]["dtype"] == "float32"
    assert report["unavailable"] == {}
    sizes = [(r["test"], r["prompt"], r["generated"], r["depth"], r["batch"]) for r in report["rows"]]
    apart = [(d, b) for d in (0, 9) for b in (1, 2)]
    assert sizes == [
        *(("prefill", 6, 0, *at) for at in apart),
        *(("decode", 0, 3, *at) for at in apart),
        ("generate", 6, 3, 0, 1),
    ]
    for row in report["rows"]:
        assert list(row["arms"]) == ARMS
        for arm in row["arms"].values():
            assert len(arm["tokens_per_second"]["runs"]) == row["repetitions"] == 2
            assert arm["peak_bytes"] >= arm["active_bytes"] > 0
            assert arm["first_run_s"] > 0
            assert ("bandwidth" in arm) == (row["test"] == "decode")
            assert ("launches" in arm) == (row["test"] == "decode")
            assert ("first_token_s" in arm) == (row["test"] != "decode")


def test_every_key_is_documented_and_every_documented_key_is_there(
    capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    _, out, _ = run(capsys, "--shape", shape, *QUICK, "--json")
    report = json.loads(out)
    words = set(re.findall(r"\w+", str(files_module.__doc__)))

    def keys(value: Any, inside: str = "") -> set[str]:
        if isinstance(value, list):
            return set().union(set(), *(keys(v, inside) for v in value))
        if not isinstance(value, dict):
            return set()
        named = set() if inside in ("arms", "loading", "environment", "unavailable") else set(value)
        return named.union(*(keys(v, k) for k, v in value.items()))

    assert keys(report) - words == set()
    readme = (ROOT / "bench" / "README.md").read_text("utf-8")
    assert {key for key in report if f"`{key}`" not in readme} == set()
    documented = re.findall(r"^    (\w+(?:, \w+)*)  ", str(files_module.__doc__), re.M)
    assert set(", ".join(documented).split(", ")) == set(report)


def test_all_formats(capsys: pytest.CaptureFixture[str], shape: str, tmp_path: Path) -> None:
    names = {name: tmp_path / f"out.{name}" for name in ("json", "jsonl", "csv", "markdown")}
    targets = [part for name, file in names.items() for part in (f"--{name}", file)]
    code, out, _ = run(capsys, "--shape", shape, *QUICK, "--arms", "none,baseline", *targets)
    assert code == 0
    assert "× baseline" in out
    report = json.loads(names["json"].read_text())
    lines = [json.loads(line) for line in names["jsonl"].read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO(names["csv"].read_text())))
    assert len(lines) == len(table) == 6
    for line, cells in zip(lines, table, strict=True):
        row = next(r for r in report["rows"] if r["test"] == line["test"])
        arm = row["arms"][line["arm"]]
        assert line["tokens_per_second_median"] == arm["tokens_per_second"]["median"]
        assert line["over_baseline"] == arm["over_baseline"]["value"]
        assert line.get("launches") == arm.get("launches")
        assert (cells["launches"] or None) == (str(arm["launches"]) if "launches" in arm else None)
        assert float(cells["tokens_per_second_median"]) == line["tokens_per_second_median"]
        assert not any(isinstance(value, dict | list) for value in line.values())
    markdown = names["markdown"].read_text()
    assert markdown.count("\n| ") == 1 + 6
    assert "| pp6+tg3 | baseline |" in markdown


def test_a_checkpoint_quantised_on_the_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", hidden_size=128, intermediate_size=192, num_attention_heads=4)
    _, out, _ = run(capsys, "--model", folder, *QUICK, "--json")
    plain = json.loads(out)["model"]
    _, out, _ = run(capsys, "--model", folder, "--bits", 8, "--group-size", 32, *QUICK, "--json")
    packed = json.loads(out)["model"]
    assert (plain["bits"], packed["bits"], packed["group_size"]) == (None, 8, 32)
    assert packed["file_bytes"] < 0.5 * plain["file_bytes"]


def test_an_unknown_family_leaves_the_peer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from checkpoints import edit_config

    folder = write_checkpoint(tmp_path / "m")
    edit_config(folder, model_type="helium", head_dim=16, attention_bias=False, mlp_bias=False)
    code, out, _ = run(capsys, "--model", folder, *QUICK, "--json")
    report = json.loads(out)
    assert code == 0
    assert set(report["unavailable"]) == set(ARMS) - {"mlx-lm"}
    assert all("\n" not in why for why in report["unavailable"].values())


def test_ctrl_c_prints_what_was_measured(
    capsys: pytest.CaptureFixture[str], shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Impatient(Timer):
        starts = 0

        def clock(self) -> float:
            Impatient.starts += 1
            if Impatient.starts > 60:
                raise KeyboardInterrupt
            return super().clock()

    monkeypatch.setattr(command, "Timer", Impatient)
    code, out, _ = run(capsys, "--shape", shape, "-p", "4,5,6,7,8", "-g", "0", "-r", "2", "--json", tmp_path / "x")
    report = json.loads((tmp_path / "x").read_text())
    assert code == 130
    assert report["interrupted"] is True
    assert 1 <= len(report["rows"]) < 5
    assert "interrupted" in out


ERRORS = [
    ([], 1, "--model MODEL or --shape NAME"),
    (["--shape", "GPT-17"], 1, "GPT-17: no such shape"),
    (["--shape", "none.json"], 1, "none.json: No such file"),
    (["--model", "nowhere"], 1, "nowhere: no such folder"),
    (["--shape", "SHAPE", "-p", "0", "-g", "0"], 1, "nothing to measure"),
    (["--shape", "SHAPE", "--json", "--csv"], 1, "only one format"),
    (["--shape", "SHAPE", "--json", "no/such/file.json"], 1, "its folder does not exist"),
    (["--model", "SHAPE", "--converted"], 1, "--converted goes with --shape"),
    (["--shape", "SHAPE", "--revision", "x"], 1, "--revision goes with --model"),
    (["--shape", "Llama-3.1-8B", "--model", "x"], 2, "not allowed with"),
    (["--shape", "SHAPE", "-p", "9-3"], 2, "ends before it starts"),
    (["--shape", "SHAPE", "-b", "0"], 2, "0 is not between 1 and 1024"),
    (["--shape", "SHAPE", "-r", "0"], 2, "0 is not between 1 and 1000"),
    (["--shape", "SHAPE", "--arms", "mlx-lm,fast"], 2, "'fast' is not an arm"),
    (["--shape", "SHAPE", "--bits", "3"], 2, "invalid choice"),
    (["compare", "a.json"], 2, "B.json"),
]


@pytest.mark.parametrize(("args", "code", "message"), ERRORS, ids=[" ".join(a) for a, _, _ in ERRORS])
def test_nonsense_is_a_line(
    capsys: pytest.CaptureFixture[str], shape: str, args: list[str], code: int, message: str
) -> None:
    got, out, err = run(capsys, *(shape if a == "SHAPE" else a for a in args))
    assert (got, out) == (code, "")
    assert message in err
    if code == 1:
        assert err.startswith("flashnorm: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [({"model_type": 7}, "model_type is missing"), ({"hidden_size": -1}, "hidden_size must be a positive")],
)
def test_a_wrong_shape_is_a_line(
    capsys: pytest.CaptureFixture[str], shape: str, change: dict[str, Any], says: str
) -> None:
    file = Path(shape)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    code, out, err = run(capsys, "--shape", shape, *QUICK)
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_too_little_memory_is_said_before_any_is_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("weights were made")

    monkeypatch.setattr(source, "write_random", fail)
    monkeypatch.setattr(memory, "available", lambda: 8 * 10**9)
    code, out, err = run(capsys, "--shape", "Llama-3.1-8B", *QUICK)
    assert (code, out) == (1, "")
    assert "Llama-3.1-8B in 4 arms would take about" in err
    assert "8.0 GB are free" in err


def test_list_names_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == shapes.shape_names()
    assert {f.stem for f in (ROOT / "models" / "shapes").glob("*.json")} == set(shapes.shape_names())
    assert shapes.read_shape("smollm2-135m") == shapes.read_shape("SmolLM2-135M")


def test_the_wheel_carries_the_shapes() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '"/models/shapes/*.json"' in project
    assert '"models/shapes" = "flashnorm_mlx/_shapes"' in project


def test_help_is_had_without_mlx() -> None:
    code = (
        "import sys; from flashnorm_mlx import cli\n"
        "try: cli.main(['bench', '--help'])\n"
        "finally: print('mlx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("False")
    assert "examples:" in done.stdout


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str) -> None:
    if not importable("matplotlib"):
        code, out, err = run(capsys, "--shape", shape, *QUICK, "--plot", tmp_path / "x.png")
        assert (code, out) == (1, "")
        assert "flashnorm-mlx[plot]" in err
        return
    run(capsys, "--shape", shape, *QUICK, "--plot", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    plot.check()


def importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
