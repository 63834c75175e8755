"""The measurement itself: arms in turn, repetition by repetition, and what the repetitions say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .arms import Progress, described
from .loop import Sample, Timer, Trial
from .statistics import drift, paired_ratio, recovered, summary, warnings
from .traffic import Traffic


@dataclass
class Session:
    """Models that take turns, and how: ``repeat`` repetitions behind a discarded one, ``delay`` seconds before each.

    Order: forwards and backwards in turn (ABBA), so that what drifts meets all alike.
    """

    models: Mapping[str, Any]
    facts: Mapping[str, Mapping[str, Any]]
    vocabulary: int
    repeat: int = 5
    delay: float = 0.0
    traffic: Traffic | None = None
    #: Bytes a second that the memory gives.
    bandwidth: float | None = None
    #: Counts the operations of a step, see :func:`launches.launches`.
    launches: Callable[[Any, Trial, int, Timer], int] | None = None
    timer: Timer = field(default_factory=Timer)
    sleep: Callable[[float], None] = time.sleep
    progress: Progress = lambda word, done, total: None
    interrupted: bool = False

    def rows(self, trials: list[Trial]) -> list[dict[str, Any]]:
        """A row of the report for each trial. Ctrl-C ends it, with what the repetitions so far say as the last row."""
        found: list[dict[str, Any]] = []
        try:
            for trial in trials:
                row = self.row(trial)
                if row is not None:
                    found.append(row)
                if self.interrupted:
                    break
        except KeyboardInterrupt:  # between two runs
            self.interrupted = True
        return found

    def row(self, trial: Trial) -> dict[str, Any] | None:
        """One trial of all arms; None if it was interrupted before a repetition was whole."""
        runs: dict[str, list[Sample]] = {name: [] for name in self.models}
        seen: dict[str, dict[str, Any]] = {name: {} for name in self.models}
        try:
            for i in range(self.repeat + 1):
                for name in runs if i % 2 == 0 else reversed(runs):
                    if "error" not in seen[name]:
                        self._run(trial, name, i, runs, seen[name])
                self.progress(str(trial), i + 1, self.repeat + 1)
        except KeyboardInterrupt:
            self.interrupted = True
        whole = {name: found for name, found in runs.items() if "error" not in seen[name]}
        count = min(map(len, whole.values()), default=0)
        if self.interrupted and not count:
            return None
        return self._summed_up(trial, {name: found[:count] for name, found in whole.items()}, seen)

    def _run(self, trial: Trial, name: str, i: int, runs: dict[str, list[Sample]], seen: dict[str, Any]) -> None:
        """One arm's turn. The first is a warm-up that compiles what is left to compile; memory is read in it."""
        if self.delay:
            self.sleep(self.delay)
        mx.reset_peak_memory()
        active = mx.get_active_memory()
        try:
            if i and trial.kind == "prefill":  # behind another model's turn a prompt takes up to 14 % longer
                trial.first_chunk.run(self.models[name], self.vocabulary, self.timer)
            sample = trial.run(self.models[name], self.vocabulary, self.timer)
        except Exception as error:  # the others go on
            seen["error"] = described(error)
            return
        if i:
            runs[name].append(sample)
            return
        model_bytes = self.facts[name]["model_bytes"]
        seen["first_run_s"] = sample.seconds
        seen["active_bytes"] = model_bytes
        seen["peak_bytes"] = model_bytes + max(0, mx.get_peak_memory() - active)
        if trial.kind == "decode" and self.launches is not None:
            seen["launches"] = self.launches(self.models[name], trial, self.vocabulary, self.timer)

    def _summed_up(
        self, trial: Trial, runs: dict[str, list[Sample]], seen: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        speeds = {name: [s.tokens_per_second for s in found] for name, found in runs.items() if found}
        arms: dict[str, Any] = {}
        for name, found in seen.items():
            arms[name] = dict(found)
            if name not in speeds:
                continue
            arms[name] |= {"tokens_per_second": summary(speeds[name]) | {"runs": speeds[name]}}
            firsts = [s.first_token_s for s in runs[name] if s.first_token_s is not None]
            if firsts:
                arms[name]["first_token_s"] = summary(firsts)
            for other, key in (("baseline", "over_baseline"), ("mlx-lm", "over_mlx_lm"), ("none", "over_none")):
                if other in speeds:
                    arms[name][key] = paired_ratio(speeds[name], speeds[other])
            if trial.kind == "decode":
                arms[name] |= self._read(trial, arms[name]["tokens_per_second"]["median"])
        three = [[s.seconds for s in runs.get(name, [])] for name in ("baseline", "flashnorm", "none")]
        return {
            "test": trial.kind,
            "prompt": trial.prompt,
            "generated": trial.generated,
            "depth": trial.depth,
            "batch": trial.batch,
            "repetitions": min(map(len, speeds.values()), default=0),
            "arms": arms,
            "recovered": recovered(*three) if all(three) else None,
            "drift": drift(speeds),
            "warnings": warnings(speeds),
        }

    def _read(self, trial: Trial, speed: float) -> dict[str, Any]:
        """Bytes a token, and the bandwidth that they amount to; the context is counted at its mean length."""
        if self.traffic is None:
            return {}
        step = self.traffic.step(trial.depth + (trial.generated + 1) / 2, trial.batch)
        achieved = step / trial.batch * speed
        share = achieved / self.bandwidth if self.bandwidth else None
        return {"bytes_per_token": round(step / trial.batch), "bandwidth": achieved, "bandwidth_share": share}
