"""Decode speed of machines that aren't here: ``time a token = bytes ÷ bandwidth + launches × launch cost``.

Bandwidth is the published peak times the share of it that is reached. That share and the cost of a launch are fitted:
for Apple's chips to the two speeds that the paper publishes (§6), for other GPUs to the rows measured there. The form
of the model is judged on the latter: each shape's rows are predicted from the other shapes'.

What comes out is *predicted*, never measured. It knows of no arithmetic, no caches, no thermal limits; and it takes the
M1's launch cost and share for those of every Apple chip.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FlashNormError
from .files import SCHEMA
from .footprint import Footprint, footprint
from .shapes import read_shape, shape_names

#: The paper's §6: OpenELM-270M, 4 bits, on an M1 MacBook Air, in tokens a second. "When we remove RMSNorm entirely" is
#: read as all of them: two and the two of q and k in each block, and the last.
PUBLISHED_SHAPE, PUBLISHED_MACHINE, WITH_NORMS, WITHOUT_NORMS = "OpenELM-270M", "M1", 204.0, 225.0


@dataclass(frozen=True)
class Machine:
    """A machine's name, its published peak bandwidth in bytes a second, and who published it."""

    name: str
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Calibration:
    """What isn't published of a machine: seconds a launch, and the share of the peak bandwidth that is reached."""

    launch: float
    share: float

    def seconds(self, nbytes: float, launches: float, bandwidth: float) -> float:
        """``bytes/(share·bandwidth) + launches·launch``"""
        return nbytes / (self.share * bandwidth) + launches * self.launch


@dataclass(frozen=True)
class Sample:
    """One measured speed, and what the model knows of it."""

    shape: str
    depth: int
    nbytes: int
    launches: int
    speed: float


@dataclass(frozen=True)
class Check:
    """A measured speed beside the one that the other shapes' rows predict."""

    sample: Sample
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.sample.speed - 1


def machines() -> dict[str, Machine]:
    """The machines of machines.json, by name."""
    entries = json.loads((Path(__file__).parent / "machines.json").read_text(encoding="utf-8"))["machines"]
    return {e["name"]: Machine(e["name"], e["bandwidth"] * 1e9, e["source"]) for e in entries}


def from_pair(model: Footprint, bandwidth: float, with_norms: float, without: float) -> Calibration:
    """What two speeds of one model say, in tokens a second: with its norms, and with none.

    ``launch = (1/with − 1/without)/norms``, and what is left of the time is ``bytes/(share·bandwidth)``.

    Raises:
        FlashNormError: if the two can't be told by any launch cost and a share between 0 and 1.
    """
    launches, fewer = model.launches["mlx-lm"], model.launches["mlx-lm, no norms"]
    launch = (1 / with_norms - 1 / without) / (launches - fewer)
    reading = 1 / with_norms - launches * launch
    if launch < 0 or reading <= 0 or model.bytes / reading > bandwidth:
        raise FlashNormError(f"{with_norms:g} and {without:g} tokens/s don't fit bytes, launches and bandwidth")
    return Calibration(launch, model.bytes / reading / bandwidth)


def published() -> Calibration:
    """The M1's, from the paper's pair."""
    model = footprint(read_shape(PUBLISHED_SHAPE))
    return from_pair(model, machines()[PUBLISHED_MACHINE].bandwidth, WITH_NORMS, WITHOUT_NORMS)


def fitted(samples: Sequence[Sample], bandwidth: float) -> Calibration:
    """The launch cost and the share, from 0 to 1, with the least sum of squared relative errors of the times."""
    rows = np.array([[s.launches * s.speed, s.nbytes * s.speed / bandwidth] for s in samples])
    ones = np.ones(len(rows))
    candidates = [np.linalg.lstsq(rows, ones, rcond=None)[0]]
    # On the borders of what is possible: all of the peak reached, or launches for nothing.
    launches, reading = rows.T
    candidates.append(np.array([max(0.0, launches @ (ones - reading) / (launches @ launches)), 1.0]))
    candidates.append(np.array([0.0, max(1.0, reading @ ones / (reading @ reading))]))
    possible = [c for c in candidates if c[0] >= 0 and c[1] >= 1]
    launch, slowness = min(possible, key=lambda c: float(np.sum((rows @ c - ones) ** 2)))
    return Calibration(float(launch), float(1 / slowness))


def cross_checked(samples: Sequence[Sample], bandwidth: float) -> list[Check]:
    """Each sample beside what a fit to all other shapes' samples predicts."""
    out = []
    for shape in dict.fromkeys(s.shape for s in samples):
        calibration = fitted([s for s in samples if s.shape != shape], bandwidth)
        for s in samples:
            if s.shape == shape:
                out.append(Check(s, 1 / calibration.seconds(s.nbytes, s.launches, bandwidth)))
    return out


def typical_error(checks: Sequence[Check]) -> float:
    """The median of the errors' sizes."""
    return statistics.median(abs(check.error) for check in checks)


def samples_of(reports: Sequence[dict[str, Any]], arm: str) -> list[Sample]:
    """An arm's decode rows of reports on shapes, batch 1, as far as they were measured and launches can be counted."""
    out = []
    for report in reports:
        about = report["model"]
        for row in report["rows"]:
            found = row["arms"].get(arm, {}).get("tokens_per_second")
            if row["test"] != "decode" or row["batch"] != 1 or found is None:
                continue
            sizes = {"bits": about["bits"] or 0, "group_size": about["group_size"] or 64, "depth": row["depth"]}
            model = footprint(read_shape(about["name"]), **sizes)
            if arm in model.launches:
                out.append(Sample(about["name"], row["depth"], model.bytes, model.launches[arm], found["median"]))
    return out


def measured_reports() -> dict[str, list[dict[str, Any]]]:
    """The committed reports on shapes, by machine; none where the package isn't in a clone."""
    results = Path(__file__).parents[2] / "bench" / "results"
    found: dict[str, list[dict[str, Any]]] = {}
    for name in machines():
        files = sorted((results / re.sub(r"[^a-z0-9]+", "-", name.lower())).glob("*.json"))
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        mine = [r for r in reports if r.get("schema") == SCHEMA and r["model"]["name"] in shape_names()]
        if mine:
            found[name] = mine
    return found


def apple_chips() -> list[Machine]:
    """The machines that the paper's calibration is for."""
    return [machine for name, machine in machines().items() if name.startswith("M")]
