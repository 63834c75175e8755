"""The README's tables, from bench/results: ``python bench/tables.py`` writes them between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


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


_ARMS = ("baseline", "flashnorm", "none")
TABLES = {"decode": decode_table, "quality": quality_table}


def _results(name: str) -> list[dict[str, Any]]:
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted(RESULTS.glob(f"*/{name}"))]


def with_tables(text: str) -> str:
    """The README's text with its tables made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table()}\n{m[2]}", text, flags=re.S)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
