"""A report's figure: for each trial, bars of the arms' speeds, with the range of the repetitions."""

from __future__ import annotations

import math
from typing import Any

from ..errors import FlashNormError
from .report import circumstances, label

#: Panels side by side.
ACROSS = 3

COLOURS = {"mlx-lm": "0.55", "baseline": "#7aa6c2", "flashnorm": "#c2562d", "none": "#d9c58b"}


def check() -> None:
    """Raise a FlashNormError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise FlashNormError("--plot needs matplotlib: pip install 'flashnorm-mlx[plot]'") from None


def plot(report: dict[str, Any], file: str) -> None:
    """Write the figure; the file's ending says of which kind."""
    check()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["rows"]
    across = min(len(rows), ACROSS)
    down = math.ceil(len(rows) / across)
    figure, grid = plt.subplots(down, across, figsize=(9.0, 1.2 + 2.8 * down), squeeze=False, layout="constrained")
    for axes in grid.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        found = {arm: f["tokens_per_second"] for arm, f in row["arms"].items() if "tokens_per_second" in f}
        medians = [f["median"] for f in found.values()]
        below = [f["median"] - min(f["runs"]) for f in found.values()]
        above = [max(f["runs"]) - f["median"] for f in found.values()]
        colours = [COLOURS[arm] for arm in found]
        axes.bar(range(len(found)), medians, yerr=[below, above], capsize=4, color=colours)
        axes.set_xticks(range(len(found)), list(found), rotation=30)
        axes.set_title(label(row), fontsize=10)
    figure.supylabel("tokens/s: median, and slowest to fastest repetition", fontsize=9)
    figure.suptitle("\n".join(circumstances(report)[:2]), fontsize=7)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise FlashNormError(f"{file}: {error}") from None
    finally:
        plt.close(figure)
