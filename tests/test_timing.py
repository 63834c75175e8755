"""The paper's machine, simulated (§5), weight by weight against its rules; and ``flashnorm timing``."""

from __future__ import annotations

import itertools
import json
import random
import sys
from math import ceil
from pathlib import Path

import pytest

from flashnorm_mlx import cli
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.measure import simulator
from flashnorm_mlx.measure.gantt import gantt
from flashnorm_mlx.measure.simulator import LAYOUTS, ORDERS, Timeline, simulate

DRAW = random.Random(0)
SIZES = [(1, 1, 1), (512, 512, 128), (64, 2, 8), (5, 70, 8), (70, 5, 8), (100, 300, 24)]
SIZES += [(DRAW.randint(1, 90), DRAW.randint(1, 90), DRAW.randint(1, 20)) for _ in range(20)]
ALL = [(*size, order, layout) for size in SIZES for order in ORDERS for layout in LAYOUTS]


# ---- the machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "layout", "bubble", "total"),
    [("sequential", "row-major", 8, 24), ("interleaved", "row-major", 5, 21), ("flashnorm", "column-major", 0, 17)],
)
def test_the_papers_example(order: str, layout: str, bubble: int, total: int) -> None:
    timeline = simulate(512, 512, 128, order, layout)
    assert (timeline.bubble, timeline.total, timeline.stalls) == (bubble, total, 0)


def test_the_other_layout_costs_what_it_takes_away() -> None:
    """By columns, the first cycle needs all inputs; by rows, no output is complete before the last row."""
    assert simulate(512, 512, 128, "interleaved", "column-major").bubble == 8
    assert simulate(512, 512, 128, "flashnorm", "row-major").total == 16 + 4


def cycles_of(timeline: Timeline, work: str) -> list[int]:
    return [c for span in timeline.spans if span.work == work for c in range(span.start, span.end)]


def broken_rules(n: int, k: int, m: int, order: str, layout: str) -> set[str]:
    """Which rules a schedule breaks, weight by weight, from nothing but its spans."""
    timeline = simulate(n, k, m, order, layout)
    norm, scale, matrix = (cycles_of(timeline, work) for work in ("RMS(a)", "scale", "compute"))
    broken = set()
    if len(matrix) != ceil(n * k / m**2) or len(norm) != ceil(n / m):
        broken.add("as many cycles as operations")
    if len(scale) != ceil((k if order == "flashnorm" else n) / m) or min(scale) < len(norm):
        broken.add("scaling follows the norm")
    for cycles in (norm + scale, matrix):
        if len(set(cycles)) < len(cycles):
            broken.add("one thing at a time")
    inputs: dict[int, set[int]] = {}
    complete = [0] * k
    for i, j in itertools.product(range(n), range(k)):
        cycle = matrix[(i * k + j if layout == "row-major" else j * n + i) // m**2]
        inputs.setdefault(cycle, set()).add(i)
        complete[j] = max(complete[j], cycle)
    if order == "flashnorm":
        if any(scale[j // m] <= complete[j] for j in range(k)):
            broken.add("outputs are scaled when complete")
        return broken | ({"starts at once"} if matrix != list(range(len(matrix))) else set())
    for cycle, read in inputs.items():
        ready = max(scale[-1] if order == "sequential" else scale[i // m] for i in read)
        if ready >= cycle:
            broken.add("inputs are scaled when read")
        if ready != cycle - 1 and cycle - 1 not in inputs:
            broken.add("no waiting for nothing")
    return broken


@pytest.mark.parametrize("run", ALL, ids=str)
def test_every_schedule_keeps_the_rules(run: tuple) -> None:
    assert broken_rules(*run) == set()


@pytest.mark.parametrize(
    ("run", "name", "wrong", "rule"),
    [
        ((70, 5, 8, "interleaved", "row-major"), "_input", 0, "inputs are scaled when read"),
        ((70, 5, 8, "interleaved", "row-major"), "_input", 69, "no waiting for nothing"),
        ((70, 50, 8, "flashnorm", "column-major"), "_last_weight", 0, "outputs are scaled when complete"),
    ],
)
def test_a_broken_rule_is_noticed(
    monkeypatch: pytest.MonkeyPatch, run: tuple, name: str, wrong: int, rule: str
) -> None:
    monkeypatch.setattr(simulator, name, lambda *_: wrong)
    assert rule in broken_rules(*run)


@pytest.mark.parametrize(("n", "k", "m"), SIZES, ids=str)
def test_totals(n: int, k: int, m: int) -> None:
    product = ceil(n * k / m**2)
    for layout in LAYOUTS:
        slow, between, fast = (simulate(n, k, m, order, layout) for order in ORDERS)
        assert (slow.bubble, slow.total, slow.tail) == (2 * ceil(n / m), 2 * ceil(n / m) + product, 0)
        assert between.total <= slow.total
        assert fast.bubble == 0 and fast.total > product


def test_a_narrow_product_waits_in_the_middle() -> None:
    """Each cycle reads 32 rows, the vector unit scales 8."""
    timeline = simulate(64, 2, 8, "interleaved", "row-major")
    assert (timeline.bubble, timeline.stalls, timeline.total) == (12, 3, 17)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ((0, 1, 1, "sequential", "row-major"), "n must be a positive integer, not 0"),
        ((1, 1, 1, "late", "row-major"), "order 'late' is not known; choose sequential, interleaved, flashnorm"),
        ((1, 1, 1, "sequential", "rows"), "layout 'rows' is not known"),
        ((10**4, 10**4, 1, "sequential", "row-major"), "100,000,000 cycles are more than are simulated"),
    ],
)
def test_nonsense_is_one_line(run: tuple, says: str) -> None:
    with pytest.raises(FlashNormError, match=says) as error:
        simulate(*run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("size", [(512, 512, 128), (8192, 8192, 128), (1, 1, 1)])
def test_the_chart_fits_and_counts(size: tuple[int, int, int], width: int) -> None:
    timelines = [simulate(*size, order, layout) for order, layout in simulator.PAPER.items()]
    lines = gantt(timelines, width).plain.splitlines()
    rows = [line for line in lines if line.startswith(("  vector unit", "  matrix unit"))]
    assert len(rows) == 6
    assert max(map(len, rows)) <= max(width, 24)
    if size == (512, 512, 128) and width == 80:
        assert [row.count("█") for row in rows] == [0, 32, 0, 32, 0, 32]
        assert [row.count("·") for row in rows] == [32, 16, 26, 10, 18, 2]
        assert "bubble 5, 21 cycles in all" in lines[3]


# ---- the command ------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        code = cli.main(["timing", *args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_timing_shows_figure_10(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    for words in ("simulated", "bubble 8, 24 cycles", "bubble 5, 21 cycles", "17 cycles in all"):
        assert words in out
    code, out, _ = run(capsys, "--sweep", "--m", "64")
    assert code == 0
    assert "8, 24" in out and "5, 21" in out and "0, 17" in out


def test_predictions_are_labelled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(capsys, "--predict", "OpenELM-270M")
    assert code == 0
    assert "predicted, not measured" in out and "predicted tokens/s" in out and "median error" in out
    assert "NVIDIA H200, flashnorm: median error" in out and "Qwen3-0.6B" not in out
    assert "Qwen3-0.6B" in run(capsys, "--predict", "OpenELM-270M", "--check")[1]
    first = next(line for line in out.splitlines() if "M1 " in line)
    assert "204" in first and "225" in first
    monkeypatch.setattr("flashnorm_mlx.measure.timing_report.measured_reports", dict)
    assert "not checked here" in run(capsys, "--predict", "OpenELM-270M")[1]


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (tmp_path / "broken.json").write_text("{")
    for args, code, says in (
        (["--predict", "nowhere"], 1, "nowhere: no such shape"),
        (["--predict", str(tmp_path)], 1, "config.json: "),
        (["--predict", str(tmp_path / "broken.json")], 1, "not JSON"),
        (["--m", "0"], 2, "0 is not between"),
        (["--sweep", "--predict", "x"], 2, "not allowed with"),
        (["--n", "100000", "--m", "1"], 1, "give a larger m"),
    ):
        got, out, err = run(capsys, *args)
        assert (got, out) == (code, "")
        assert says in err and "Traceback" not in err
        assert code == 2 or err.count("\n") == 1


def test_plotting_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, "--plot", "chart.png")
    assert (code, out, err.strip()) == (1, "", "flashnorm: --plot needs matplotlib: pip install 'flashnorm-mlx[plot]'")


@pytest.mark.parametrize("args", [[], ["--sweep"], ["--predict", "Llama-3.2-1B"]], ids=str)
def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path, args: list[str]) -> None:
    pytest.importorskip("matplotlib")
    code, _, _ = run(capsys, *args, "--plot", str(tmp_path / "chart.png"))
    assert code == 0
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    code, _, err = run(capsys, *args, "--plot", str(tmp_path / "none" / "chart.png"))
    assert code == 1 and "No such file" in err
