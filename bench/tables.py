"""The READMEs' tables, from bench/results: ``python bench/tables.py`` writes them between their markers.

``python bench/tables.py gpu-decode gpu-depth`` prints tables instead, README or not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experiment_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
READMES = (ROOT / "README.md", ROOT / "bench" / "README.md")
Row = dict[str, Any]


def decode_table() -> str:
    lines = ["| device | model | checkpoint | mlx-lm | baseline | flashnorm | none |", "|---|---|---|---|---|---|---|"]
    for result in _results("decode.json"):
        for row in result["rows"]:
            weights = f"{row['bits']}-bit, {row['dtype']}" if row["bits"] else row["dtype"]
            if result["device"] == "cpu" and row["dtype"] != "float32":
                weights += " (ours computes in float32)"
            cells = [
                f"{row['arms'][a]['tokens_per_second']:.4g} ({row['arms'][a]['over_mlx_lm']:.2f} ×)" for a in _ARMS
            ]
            stock = f"{row['arms']['mlx-lm']['tokens_per_second']:.3g}"
            lines.append(f"| {result['device']} | {row['model']} | {weights} | {stock} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def gpu_table(file: str, setting: str, wanted: Callable[[Row, list[Row]], bool] = lambda row, rows: True) -> str:
    """Speeds on GPUs: tokens/s, and in brackets how many times mlx-lm's. ``setting`` is a column of its own."""
    names = [setting] if setting else []
    arms = ["mlx-lm", "flashnorm", "baseline", "none", "flashnorm ÷ none", "reference"]
    head = ["device", "shape", *names, "runs", *arms]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in _results(file):
        rows = [row for row in result["rows"] if wanted(row, result["rows"])]
        for row in sorted(rows, key=lambda row: (_size(row), _shape(row), row.get(setting, 0))):
            found = row["contestants"]
            ratio = found["flashnorm"].get("over_none")
            cells = [result["device"], _shape(row), *(f"{row[name]:,}" for name in names), str(row["repeat"])]
            cells += [_speed(found.get(name, {})) for name in ("mlx-lm", "flashnorm", "baseline", "none")]
            cells += ["–" if ratio is None else f"{ratio:.3f}", _speed(found.get("reference", {}))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kernel_table() -> str:
    """Microseconds of single operations. ≤: the device has waited for the CPU, so it is an upper bound."""
    head = ["device", "shape", "operation", "MB", "floor µs", "MLX µs", "ours µs", "floor ÷ ours"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in _results("gpu-kernels.json"):
        for row in result["rows"]:
            micros = row["ours"] and row["ours"].get("device_us")
            shape = _shape(row) + (f", batch {row['batch']}" if row["batch"] > 1 else "")
            cells = [result["device"], shape, row["operation"], f"{row['bytes'] / 1e6:.3g}", f"{row['floor_us']:.2f}"]
            cells += [_micros(row["mlx"]), _micros(row["ours"]), f"{row['floor_us'] / micros:.2f}" if micros else "–"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(found: Row) -> str:
    """``512.3 (1.24 ×)``, or a dash for what could not be run."""
    if "tokens_per_second" not in found:
        return "–"
    ratio = found.get("over_mlx_lm", 1.0)
    return f"{found['tokens_per_second']:.4g}" + (f" ({ratio:.2f} ×)" if ratio != 1.0 else "")


def _micros(found: Row | None) -> str:
    if not found or "device_us" not in found:
        return "–"
    return ("" if found["hidden"] else "≤ ") + f"{found['device_us']:.2f}"


def _shape(row: Row) -> str:
    """``SmolLM2-135M, 4-bit float16``, and what else was out of the ordinary."""
    weights = f"{row['bits']}-bit {row['dtype']}" if row["bits"] else row["dtype"]
    special = [f"{name}={value}" for name, value in row["environment"].items()] if "contestants" in row else []
    return ", ".join([row["shape"], weights, *(["converted"] if row.get("converted") else []), *special])


def _size(row: Row) -> int:
    return max(found.get("model_bytes", 0) for found in row["contestants"].values())


def _has_depths(row: Row, rows: list[Row]) -> bool:
    """Whether a shape was decoded at several depths."""
    return len({r["depth"] for r in rows if _shape(r) == _shape(row)}) > 1


_ARMS = ("baseline", "flashnorm", "none")
TABLES: dict[str, Callable[[], str]] = {
    "decode": decode_table,
    "quality": quality_table,
    "gpu-decode": lambda: gpu_table("gpu-decode.json", "", lambda row, rows: row["depth"] == 16),
    "gpu-depth": lambda: gpu_table("gpu-decode.json", "depth", _has_depths),
    "gpu-batch": lambda: gpu_table("gpu-batch.json", "batch"),
    "gpu-prefill": lambda: gpu_table("gpu-prefill.json", "length"),
    "gpu-kernels": kernel_table,
    **{name: lambda table=table: table(_results) for name, table in experiment_tables.TABLES.items()},  # type: ignore[misc]
}


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
