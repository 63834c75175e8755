"""Tables of reports in the schema of ``flashnorm bench``, whichever device they are of and whoever measured them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flashnorm_mlx.measure.report import between

Report = dict[str, Any]
Row = dict[str, Any]
#: A report's rows that a table shows.
Choice = Callable[[Report], list[Row]]

#: Behind no more tokens than these, attention is a small part of a step.
FEW = 16

ARMS = ("mlx-lm", "baseline", "flashnorm", "none")


def speed_table(reports: list[Report], chosen: Choice, *columns: str) -> str:
    """Tokens a second, and flashnorm's over mlx-lm's and over the bound's, with 95 % intervals.

    Args:
        columns: keys of a row that are shown as columns.
    """
    ratios = ("flashnorm ÷ mlx-lm", "flashnorm ÷ none")
    head = ["device", "shape", "weights", *columns, *ARMS, *ratios, "launches", "runs", "date"]
    lines = []
    for report in reports:
        machine = report["machine"]
        for row in chosen(report):
            arms = row["arms"]
            flashnorm = arms.get("flashnorm", {})
            cells = [device(machine), report["model"]["name"], weights(report)]
            cells += [f"{row[name]:,}" for name in columns]
            cells += [speed(arms.get(arm, {})) for arm in ARMS]
            cells += [between(flashnorm.get(key)) or "–" for key in ("over_mlx_lm", "over_none")]
            cells += [launches(arms), str(row["repetitions"]), machine["date"][:10]]
            lines.append((_order(report), [row[name] for name in columns], cells))
    return table(head, [cells for *_, cells in sorted(lines)])


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown, without columns of dashes only; a sentence where there is no line."""
    if not lines:
        return "*Not measured yet.*"
    kept = [i for i in range(len(head)) if any(cells[i] != "–" for cells in lines)]
    shown = [[cells[i] for i in kept] for cells in (head, *lines)]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in shown)
    return "\n".join([first, "|---" * len(kept) + "|", *rest])


def device(machine: dict[str, Any]) -> str:
    """``gpu (NVIDIA H200)``, ``cpu (AMD EPYC)``"""
    chip = machine.get("chip")
    return machine["device"] + (f" ({chip})" if chip and chip not in machine["device"] else "")


def weights(report: Report) -> str:
    """``4-bit, float16``, and what else was out of the ordinary."""
    model = report["model"]
    form = [f"{model['bits']}-bit"] if model["bits"] else []
    form += [model["dtype"]] + ["gains kept"] * bool(model["bits"] and not model["converted"])
    return ", ".join(form + [f"{name}={value}" for name, value in report["machine"]["environment"].items()])


def speed(found: dict[str, Any]) -> str:
    """``512.3``, or a dash for what could not be run."""
    if "tokens_per_second" not in found:
        return "–"
    median = found["tokens_per_second"]["median"]
    return f"{median:,.0f}" if median >= 1000 else f"{median:.4g}"


def launches(arms: dict[str, Any]) -> str:
    """``512 → 153``: mlx-lm's and flashnorm's."""
    counts = [arms.get(arm, {}).get("launches") for arm in ("mlx-lm", "flashnorm")]
    return " → ".join("–" if count is None else f"{count:,}" for count in counts) if any(counts) else "–"


def first_depth(report: Report) -> list[Row]:
    """Decode at batch 1, behind the fewest tokens, if those are few."""
    rows = sorted(_decode(report), key=lambda row: row["depth"])
    return [row for row in rows[:1] if row["depth"] <= FEW]


def all_depths(report: Report) -> list[Row]:
    """The same behind several numbers of tokens, where there are several, or many."""
    rows = sorted(_decode(report), key=lambda row: row["depth"])
    return rows if len(rows) > 1 or not first_depth(report) else []


def batches(report: Report) -> list[Row]:
    return sorted((r for r in report["rows"] if r["test"] == "decode" and r["batch"] > 1), key=lambda r: r["batch"])


def prompts(report: Report) -> list[Row]:
    """Prefill from an empty cache."""
    rows = [r for r in report["rows"] if r["test"] == "prefill" and (r["depth"], r["batch"]) == (0, 1)]
    return sorted(rows, key=lambda row: row["prompt"])


def _decode(report: Report) -> Iterator[Row]:
    return (row for row in report["rows"] if row["test"] == "decode" and row["batch"] == 1)


def _order(report: Report) -> tuple:
    """GPUs before CPUs, devices together, then from small models to large ones."""
    model = report["model"]
    size = model["parameters"] or model["file_bytes"] or 0
    where = device(report["machine"])
    return where.startswith("cpu"), where, size, model["name"], model["bits"] or 99, model["dtype"], model["converted"]


TABLES: dict[str, Callable[[list[Report]], str]] = {
    "speed": lambda reports: speed_table(reports, first_depth),
    "depth": lambda reports: speed_table(reports, all_depths, "depth"),
    "batch": lambda reports: speed_table(reports, batches, "batch"),
    "prefill": lambda reports: speed_table(reports, prompts, "prompt"),
}
