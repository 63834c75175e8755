"""The figure of norm_then_project.py's result.

    python bench/norm_then_project_plot.py bench/results/nvidia-h100/norm_then_project.json     writes a .png beside it

Needs matplotlib (the ``plot`` extra).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {
    "weightless": "#7aa6c2",
    "deferred": "#d49a6a",
    "two streams": "#8ab17d",
    "kernel": "#c2562d",
    "product": "0.55",
}


def plot(file: Path) -> Path:
    """Each form's speed over the sequential one's, against the rows; a panel for each size and width of weights."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(file.read_text(encoding="utf-8"))
    sizes = list(dict.fromkeys((row["size"], row["inputs"], row["outputs"]) for row in result["rows"]))
    widths = list(dict.fromkeys((row["bits"], row["dtype"]) for row in result["rows"]))
    shape = {"figsize": (3.4 * len(sizes), 0.8 + 2.8 * len(widths)), "squeeze": False, "sharex": True}
    figure, grid = plt.subplots(len(widths), len(sizes), layout="constrained", **shape)
    for panels, (bits, dtype) in zip(grid, widths, strict=True):
        for axes, size in zip(panels, sizes, strict=True):
            rows = [r for r in result["rows"] if (r["size"], r["inputs"], r["outputs"]) == size]
            draw(axes, sorted((r for r in rows if (r["bits"], r["dtype"]) == (bits, dtype)), key=lambda r: r["rows"]))
            weights = f"{bits}-bit" if bits else dtype
            axes.set_title(f"{size[0]}: {size[1]} → {size[2]}, {weights}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("rows")
    for axes in grid[:, 0]:
        axes.set_ylabel("times as fast as sequential")
    grid[0, 0].legend(fontsize=7)
    figure.suptitle(f"Norm and projection on {result['device']}", fontsize=10)
    target = file.with_suffix(".png")
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Filled: measured free of the CPU. Hollow: the device has waited for it, so that it may be faster."""
    for form, colour in COLOURS.items():
        found = [(row["rows"], row["forms"]["sequential"], row["forms"].get(form, {})) for row in rows]
        found = [cell for cell in found if all(cost.get("device_us") for cost in cell[1:])]
        counts, ratios = [n for n, _, _ in found], [a["device_us"] / b["device_us"] for _, a, b in found]
        axes.plot(counts, ratios, color=colour, label=form)
        fills = [colour if a["hidden"] and b["hidden"] else "white" for _, a, b in found]
        axes.scatter(counts, ratios, s=16, c=fills, edgecolors=colour, zorder=3)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    print(plot(Path(sys.argv[1])))
