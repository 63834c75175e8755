"""The READMEs' tables, from bench/results: ``python bench/tables.py`` writes them between their markers.

``python bench/tables.py speed depth`` prints tables instead, README or not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cost_tables
import experiment_tables
import speed_tables

from flashnorm_mlx.measure.files import SCHEMA

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
READMES = (ROOT / "README.md", ROOT / "bench" / "README.md")


def quality_table() -> str:
    lines = [
        "| weights | MB | perplexity | KL to bf16 stock | likeliest token the same | greedy answers the same |",
        "|---|---|---|---|---|---|",
    ]
    for result in _results("quality.json"):
        for row in result["rows"]:
            lines.append(
                f"| {row['form']} | {row['megabytes']:.1f} | {row['perplexity']:.4f} | {row['kl_to_stock']:.1e} "
                f"| {100 * row['same_top_token']:.2f} % | {row['same_answers']} of {row['answers']} |"
            )
    return "\n".join(lines)


def kernel_table() -> str:
    """Microseconds of single operations, ± their spread. ≤: the device has waited for the CPU: an upper bound."""
    head = ["device", "shape", "operation", "MB", "floor µs", "MLX µs", "ours µs", "floor ÷ ours"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in _results("gpu-kernels.json"):
        for row in result["rows"]:
            micros = row["ours"] and row["ours"].get("device_us")
            weights = f"{row['bits']}-bit {row['dtype']}" if row["bits"] else row["dtype"]
            shape = f"{row['shape']}, {weights}" + (f", batch {row['batch']}" if row["batch"] > 1 else "")
            cells = [result["device"], shape, row["operation"], f"{row['bytes'] / 1e6:.3g}", f"{row['floor_us']:.2f}"]
            cells += [_micros(row["mlx"]), _micros(row["ours"]), f"{row['floor_us'] / micros:.2f}" if micros else "–"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _micros(found: dict[str, Any] | None) -> str:
    if not found or "device_us" not in found:
        return "–"
    spread = f" ± {found['spread_us']:.2f}" if "spread_us" in found else ""
    return ("" if found["hidden"] else "≤ ") + f"{found['device_us']:.2f}{spread}"


TABLES: dict[str, Callable[[], str]] = {
    "quality": quality_table,
    "gpu-kernels": kernel_table,
    **{name: lambda made=made: made(_reports()) for name, made in speed_tables.TABLES.items()},  # type: ignore[misc]
    **{
        name: lambda made=made: made(_results)  # type: ignore[misc]
        for name, made in (experiment_tables.TABLES | cost_tables.TABLES).items()
    },
}


def _reports() -> list[dict[str, Any]]:
    """All that ``flashnorm bench --json`` wrote, under any name."""
    return [found for found in _results("*.json") if found.get("schema") == SCHEMA]


def _results(name: str) -> list[dict[str, Any]]:
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted(RESULTS.glob(f"*/{name}"))]


def with_tables(text: str) -> str:
    """A README's text with its tables made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table()}\n{m[2]}", text, flags=re.S)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(f"{TABLES[wanted]()}\n")
    if sys.argv[1:]:
        sys.exit()
    for readme in READMES:
        readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
