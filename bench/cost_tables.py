"""Tables of what norms cost in time and arms in memory: norm_share, memory and norm_then_project."""

from __future__ import annotations

from typing import Any

from experiment_tables import Results
from speed_tables import ARMS, table

#: Of norm_then_project's rows, those in the table; the files and figures have all.
SHOWN_ROWS = (1, 8, 256, 8192)
#: Of a time: one that is known no better is only about right.
UNSURE = 0.1
FORMS = ("sequential", "weightless", "deferred", "two streams", "kernel", "product")


def norm_share_table(results: Results) -> str:
    head = ["device", "shape", "weights", "baseline µs", "norms take", "flashnorm saves", "of the norms' cost"]
    lines = []
    for result in results("norm_share.json"):
        for row in result["rows"]:
            cells = [result["device"], row["shape"], _weights(row), f"{row['step_us']['baseline']:,.0f}"]
            lines.append([*cells, *(_percent(row[key]) for key in ("norms", "flashnorm", "recovered"))])
    return table(head, lines)


def memory_table(results: Results) -> str:
    """MB; in brackets, over mlx-lm's."""
    stages = ("loading", "active", "prompt", "decode")
    lines = []
    for result in results("memory.json"):
        for row in result["rows"]:
            stock = row["arms"].get("mlx-lm", {})
            for arm in (arm for arm in ARMS if arm in row["arms"]):
                found = row["arms"][arm]
                prompt = f"{row['batch']} × " * (row.get("batch", 1) > 1) + f"{row['prompt']:,}"
                cells = [result["device"], row["shape"], _weights(row), f"{row['file'] / 1e6:,.0f}", prompt, arm]
                lines.append([*cells, *(_megabytes(found.get(stage), stock.get(stage)) for stage in stages)])
    head = ["device", "shape", "weights", "file MB", "prompt", "arm", *(f"{stage} MB" for stage in stages)]
    return table(head, lines)


def norm_then_project_table(results: Results) -> str:
    """Microseconds of the sequential form, and how many times as fast the others are."""
    lines = []
    for result in results("norm_then_project.json"):
        for row in result["rows"]:
            if row["rows"] not in SHOWN_ROWS:
                continue
            first = row["forms"]["sequential"]
            micros = "–" if "error" in first else ("" if first["hidden"] else "≤ ") + f"{first['device_us']:,.1f}"
            cells = [result["device"], f"{row['size']}: {row['inputs']} → {row['outputs']}", _weights(row)]
            cells += [f"{row['rows']:,}", micros]
            lines.append([*cells, *(_times(first, row["forms"].get(form)) for form in FORMS[1:])])
    return table(["device", "projection", "weights", "rows", "sequential µs", *FORMS[1:]], lines)


def _weights(row: dict[str, Any]) -> str:
    gains = ", gains kept" if row["bits"] and not row.get("converted", True) else ""
    return f"{row['bits']}-bit, {row['dtype']}{gains}" if row["bits"] else str(row["dtype"])


def _percent(found: dict[str, Any] | None) -> str:
    """``12.3 % [11.9, 12.8]``"""
    if found is None:
        return "–"
    limits = "" if found["low"] is None else f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{100 * found['value']:.1f} %{limits}"


def _megabytes(found: int | None, stock: int | None) -> str:
    if found is None:
        return "–"
    return f"{found / 1e6:,.0f}" + (f" ({found / stock:.2f} ×)" if stock and stock != found else "")


def _times(first: dict[str, Any], found: dict[str, Any] | None) -> str:
    """``1.23 ×``; a dash where there is no such form, or nothing of it could be told."""
    if not found or not found.get("device_us") or not first.get("device_us"):
        return "–"
    sure = all(f["hidden"] and f.get("spread_us", 0) < UNSURE * f["device_us"] for f in (first, found))
    return ("" if sure else "~ ") + f"{first['device_us'] / found['device_us']:.2f} ×"


TABLES = {
    "norm-share": norm_share_table,
    "memory": memory_table,
    "norm-then-project": norm_then_project_table,
}
