"""The figure of quantisation.py's result.

    python bench/quantisation_plot.py bench/results/cpu/quantisation.json       writes quantisation.png beside it

Needs matplotlib (the ``plot`` extra).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"fold": "#1b6ca8", "keep": "#d1495b"}
LABELS = {"fold": "fold, quantise", "keep": "quantise, keep gain"}


def plot(file: Path) -> Path:
    """Left: layer errors against the gains' spread. Right: the demo's KL."""
    import matplotlib.pyplot as plt

    result = json.loads(file.read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    draw_layers(left, result)
    draw_demo(right, result["demo"])
    target = file.with_suffix(".png")
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def draw_layers(axes: Any, result: dict[str, Any]) -> None:
    for weights, style in (("independent", "-"), ("compensating", "--")):
        for form, colour in COLOURS.items():
            for bits, marker in ((4, "o"), (8, "s")):
                wanted = {"weights": weights, "bits": bits, "group_size": 64}
                rows = [row for row in result["synthetic"] if wanted.items() <= row.items()]
                points = [row["spread"] for row in rows], [100 * row[form] for row in rows]
                label = f"{LABELS[form]} ({weights} weights)" if bits == 4 else None
                axes.plot(*points, style, color=colour, marker=marker, markersize=4, label=label)
    axes.axvline(result["demo_gains"]["spread"], color="grey", linewidth=1, linestyle=":", label="the demo's gains")
    axes.set(yscale="log", xlabel="standard deviation of log gain", ylabel="relative error of the layer's output (%)")
    axes.set_ylim(top=500)  # room for the legend
    axes.set_title("Synthetic layers, groups of 64 (circles: 4 bits, squares: 8 bits)", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")


def draw_demo(axes: Any, rows: list[dict[str, Any]]) -> None:
    settings = list(dict.fromkeys((row["bits"], row["group_size"]) for row in rows if row["bits"]))
    for offset, form in ((-0.2, "fold"), (0.2, "keep")):
        kl = {(row["bits"], row["group_size"]): row["kl"] for row in rows if row["form"] == form}
        places = [i + offset for i in range(len(settings))]
        axes.bar(places, [kl[s] for s in settings], 0.38, color=COLOURS[form], label=LABELS[form])
    axes.set_xticks(range(len(settings)), [f"{bits} bits\ngroup {group}" for bits, group in settings])
    axes.set(yscale="log", ylabel="KL divergence from full precision (nats a token)")
    axes.set_title("The demo on its held-out text", fontsize=10)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    print(plot(Path(sys.argv[1])))
