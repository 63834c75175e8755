"""Two reports: the same thing is no regression, a planted one is found, and what can't be told is said to be so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashnorm_mlx import FlashNormError, cli
from flashnorm_mlx.measure.compare import compare, differences, tolerance
from flashnorm_mlx.measure.files import SCHEMA, VERSION
from flashnorm_mlx.measure.statistics import paired_ratio, summary

SPEEDS = {"mlx-lm": 100.0, "baseline": 120.0, "flashnorm": 150.0, "none": 152.0}


def report(seed: int, sd: float = 0.01, change: float = 1.0, pace: float = 1.0, repeat: int = 5) -> dict[str, Any]:
    """As measured: flashnorm at ``change`` times its speed, the whole machine at ``pace``."""
    random = np.random.default_rng(seed)
    rows = []
    for test, prompt, generated in (("decode", 0, 128), ("prefill", 512, 0)):
        runs = {arm: list(pace * speed * random.normal(1, sd, repeat)) for arm, speed in SPEEDS.items()}
        runs["flashnorm"] = [change * v for v in runs["flashnorm"]]
        arms: dict[str, Any] = {a: {"tokens_per_second": summary(v) | {"runs": v}} for a, v in runs.items()}
        for arm, values in runs.items():
            arms[arm] |= {"over_baseline": paired_ratio(values, runs["baseline"]), "peak_bytes": 1}
        rows.append({"test": test, "prompt": prompt, "generated": generated, "depth": 0, "batch": 1, "arms": arms})
    machine = {"device": "cpu", "mlx": "0.32", "environment": {}}
    model = {"name": "tiny", "bits": 4, "group_size": 64, "dtype": "float32", "converted": False}
    return {"schema": SCHEMA, "version": VERSION, "machine": machine, "model": model, "rows": rows}


def verdicts(a: dict[str, Any], b: dict[str, Any], **options: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for change in compare(a, b, **options):
        found.setdefault(change.arm, set()).add(change.verdict)
    return found


def test_the_same_thing_twice_is_no_regression() -> None:
    """Of 50 pairs of runs with 8 figures each."""
    bad = [i for i in range(50) if "slower" in set().union(*verdicts(report(i), report(1000 + i)).values())]
    assert bad == []


def test_a_file_with_itself() -> None:
    assert {change.ratio["value"] for change in compare(report(1), report(1))} == {1.0}


def test_a_planted_five_per_cent_is_found() -> None:
    """At a spread of 1 %, nearly always, in the arm where it is, and in the other direction as a gain."""
    found = [verdicts(report(i), report(1000 + i, change=0.95)) for i in range(50)]
    assert sum(v["flashnorm"] == {"slower"} for v in found) >= 40
    assert not any("slower" in v[arm] for v in found for arm in ("mlx-lm", "baseline", "none"))
    back = verdicts(report(1001, change=0.95), report(1))
    assert back["flashnorm"] == {"faster"}


def test_a_wide_spread_is_unsure_rather_than_wrong() -> None:
    found = [verdicts(report(i, sd=0.15), report(1000 + i, sd=0.15, change=0.95)) for i in range(30)]
    assert sum("unsure" in v["flashnorm"] for v in found) >= 25


def test_relative_to_an_arm_a_slow_machine_is_no_regression() -> None:
    a, b = report(1), report(2, pace=0.8)
    assert verdicts(a, b)["flashnorm"] == {"unsure"}
    assert tolerance(a, b) == pytest.approx(0.2, abs=0.02)
    assert "slower" not in verdicts(a, b, relative_to="mlx-lm")["flashnorm"]
    assert tolerance(a, b, relative_to="mlx-lm") < 0.025
    slower = report(2, pace=0.8, change=0.95)
    assert verdicts(a, slower, relative_to="mlx-lm")["flashnorm"] == {"slower"}


def test_what_the_control_moved_by_is_no_verdict_on_ours() -> None:
    """One row was measured in a bad moment, in all arms; with no control the arms are taken at their word."""
    a, b = report(1), report(2)
    for row in (a["rows"][0],):
        for arm in row["arms"].values():
            arm["tokens_per_second"]["runs"] = [1.1 * v for v in arm["tokens_per_second"]["runs"]]
    assert "slower" not in set().union(*verdicts(a, b).values())
    assert "slower" not in set().union(*verdicts(a, b, relative_to="baseline").values())
    for found in (a, b):
        for row in found["rows"]:
            del row["arms"]["mlx-lm"]
    assert "slower" in verdicts(a, b)["flashnorm"]


def test_one_repetition_proves_nothing() -> None:
    assert verdicts(report(1, repeat=1), report(2, repeat=1, change=0.5))["flashnorm"] == {"unsure"}


def test_what_can_not_be_compared_is_a_line() -> None:
    a = report(1)
    other = copy.deepcopy(a)
    other["model"]["bits"] = 8
    with pytest.raises(FlashNormError, match="bits is 4 and 8"):
        compare(a, other)
    other = copy.deepcopy(a)
    for row in other["rows"]:
        row["depth"] = 77
    with pytest.raises(FlashNormError, match="no row and arm in common"):
        compare(a, other)
    other = copy.deepcopy(a)
    other["machine"]["mlx"] = "0.33"
    assert differences(a, other) == ["mlx: 0.32 and 0.33"]


def test_command_and_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {}
    for name, found in (("a", report(1)), ("same", report(2)), ("slow", report(3, change=0.9))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(found))

    def run(*args: object) -> tuple[int, str, str]:
        code = cli.main(["bench", "compare", *map(str, args)])
        return code, *capsys.readouterr()

    code, out, err = run(files["a"], files["same"])
    assert (code, err) == (0, "")
    assert "0 of 8 slower" in out
    code, out, _ = run(files["a"], files["slow"])
    assert code == 1
    assert "2 of 8 slower by more than 2 %" in out
    assert run(files["a"], files["slow"], "--threshold", 20)[0] == 0
    broken = tmp_path / "broken.json"
    for text, says in (
        ("{", "not JSON"),
        ("[1]", "not a report"),
        ("{}", "not a report"),
        (json.dumps(report(1) | {"version": 9}), "version 9 of the schema"),
        (json.dumps({"schema": SCHEMA, "version": VERSION}), "rows is missing"),
    ):
        broken.write_text(text)
        code, out, err = run(files["a"], broken)
        assert (code, out) == (1, "")
        assert says in err
        assert err.count("\n") == 1
    code, _, err = run(files["a"], tmp_path / "none.json")
    assert code == 1
    assert "No such file" in err
