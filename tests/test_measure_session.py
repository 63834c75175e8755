"""Arms take turns, warm-ups are left out, failures and Ctrl-C keep what was measured. Fake clock, fake models."""

from __future__ import annotations

from typing import Any

import pytest
from measuring import FakeModel, FakeTimer

from flashnorm_mlx.measure.loop import Trial
from flashnorm_mlx.measure.session import Session
from flashnorm_mlx.measure.traffic import Traffic

STEP = {"mlx-lm": 2.0, "baseline": 1.5, "flashnorm": 1.1, "none": 1.0}
DECODE = Trial("decode", 0, 4, 0, 1)


def session(timer: FakeTimer | None = None, **options: Any) -> Session:
    timer = timer or FakeTimer()
    models = {name: FakeModel(timer, seconds, compiling=60.0) for name, seconds in STEP.items()}
    facts = {name: {"model_bytes": 1000} for name in models}
    return Session(models, facts, vocabulary=10, timer=timer, **options)


def test_speeds_ratios_and_share() -> None:
    row = session(traffic=Traffic(weights=800, position=10), bandwidth=1000.0).row(DECODE)
    assert row is not None
    assert row["repetitions"] == 5
    for name, seconds in STEP.items():
        arm = row["arms"][name]
        assert arm["tokens_per_second"]["median"] == pytest.approx(1 / seconds)
        assert arm["over_mlx_lm"]["value"] == pytest.approx(2 / seconds)
        assert arm["over_baseline"]["value"] == pytest.approx(1.5 / seconds)
        assert arm["over_none"]["value"] == pytest.approx(1 / seconds)
        assert arm["bytes_per_token"] == 825
        assert arm["bandwidth_share"] == pytest.approx(0.825 / seconds)
    assert row["recovered"]["value"] == pytest.approx(0.8)
    assert row["warnings"] == []


def test_launches_are_counted_once_for_each_arm_and_only_of_decoding() -> None:
    counted: list[Any] = []
    taking = session(launches=lambda model, trial, vocabulary, timer: counted.append(model) or len(counted))
    row = taking.row(DECODE)
    assert row is not None
    assert [arm["launches"] for arm in row["arms"].values()] == [1, 2, 3, 4]
    assert counted == list(taking.models.values())
    row = taking.row(Trial("prefill", 8, 0, 0, 1))
    assert row is not None
    assert not any("launches" in arm for arm in row["arms"].values())


def test_compilation_is_reported_apart() -> None:
    row = session().row(DECODE)
    assert row is not None
    arm = row["arms"]["none"]
    assert arm["first_run_s"] == 64
    assert arm["tokens_per_second"]["runs"] == [1.0] * 5


def test_turns_are_taken_forwards_and_backwards() -> None:
    turns: list[str] = []
    timer = FakeTimer()
    taking = session(timer, repeat=3)
    for name, model in taking.models.items():
        model.make_cache = lambda name=name: turns.append(name) or []
    taking.row(DECODE)
    order = list(STEP)
    assert turns == order + order[::-1] + order + order[::-1]


def test_a_prompt_runs_twice_in_a_turn_and_its_second_run_counts() -> None:
    timer = FakeTimer()
    taking = session(timer, repeat=2)
    lengths: list[int] = []

    class Warming(FakeModel):
        """Slow where another model had its turn before."""

        last: Any = None

        def __call__(self, ids: Any, cache: Any = None) -> Any:
            lengths.append(ids.shape[1])
            self.seconds, Warming.last = (1.0 if Warming.last is self else 5.0), self
            return super().__call__(ids, cache)

    taking.models = {name: Warming(timer, 1.0) for name in STEP}
    row = taking.row(Trial("prefill", 3000, 0, 10, 1))
    assert row is not None
    once = [10, 2048, 951, 1]
    assert lengths == 4 * once + 8 * [2047, 1, *once]
    for arm in row["arms"].values():
        assert arm["tokens_per_second"]["runs"] == [1000.0] * 2
        assert arm["first_run_s"] == 3


def test_a_steady_drift_meets_all_arms_alike() -> None:
    """A machine that gets slower with every call: equal arms stay equal within 2 % though the last is at 60 %."""

    class Slowing(FakeModel):
        calls_of_all = 0

        def __call__(self, ids: Any, cache: Any = None) -> Any:
            Slowing.calls_of_all += 1
            self.seconds = 1 + 0.006 * Slowing.calls_of_all
            return super().__call__(ids, cache)

    timer = FakeTimer()
    models = {name: Slowing(timer, 1.0) for name in ("baseline", "flashnorm", "none")}
    facts = {name: {"model_bytes": 0} for name in models}
    row = Session(models, facts, vocabulary=10, repeat=8, timer=timer).row(DECODE)
    assert row is not None
    assert abs(row["arms"]["flashnorm"]["over_baseline"]["value"] - 1) < 0.02
    assert row["drift"] < -0.05
    assert any(line.startswith("drift") for line in row["warnings"])
    assert row["recovered"] is None


def test_delay_comes_before_every_run() -> None:
    slept: list[float] = []
    session(repeat=2, delay=3.0, sleep=slept.append).row(DECODE)
    assert slept == [3.0] * 12


def test_an_arm_that_raises_has_its_error_and_the_others_go_on() -> None:
    taking = session()

    def fail() -> list:
        raise RuntimeError("out of memory\nat line 7")

    taking.models["none"].make_cache = fail  # type: ignore[method-assign]
    row = taking.row(DECODE)
    assert row is not None
    assert row["arms"]["none"] == {"error": "RuntimeError: out of memory"}
    assert row["arms"]["flashnorm"]["over_baseline"]["value"] == pytest.approx(1.5 / 1.1)
    assert row["recovered"] is None


@pytest.mark.parametrize(("after", "whole"), [(4, None), (7, None), (8, 1), (14, 2)])
def test_ctrl_c_keeps_whole_repetitions(after: int, whole: int | None) -> None:
    """``after`` runs, of which the first four are the warm-up."""
    runs = 0
    taking = session()

    def interrupt() -> list:
        nonlocal runs
        runs += 1
        if runs > after:
            raise KeyboardInterrupt
        return []

    for model in taking.models.values():
        model.make_cache = interrupt
    rows = taking.rows([DECODE, DECODE])
    assert taking.interrupted
    assert [row["repetitions"] for row in rows] == ([] if whole is None else [whole])


def test_ctrl_c_in_a_later_trial_keeps_the_earlier() -> None:
    taking = session(repeat=1)
    words: list[str] = []

    def progress(word: str, done: int, total: int) -> None:
        words.append(word)
        if len(words) == 3:
            raise KeyboardInterrupt

    taking.progress = progress
    rows = taking.rows([DECODE, Trial("prefill", 8, 0, 0, 1), DECODE])
    assert [row["test"] for row in rows] == ["decode"]


def test_ctrl_c_between_two_runs_keeps_the_earlier_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    taking, count = session(repeat=1), 0
    row = Session.row

    def interrupted_late(self: Session, trial: Trial) -> Any:
        nonlocal count
        count += 1
        found = row(self, trial)
        if count == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Session, "row", interrupted_late)
    assert len(taking.rows([DECODE] * 3)) == 1
    assert taking.interrupted
