"""The pictures of ``flashnorm timing --plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FlashNormError, first_line
from .simulator import ORDERS, Timeline

COLOURS = {"RMS(a)": "#e9c46a", "scale": "#8ab17d", "compute": "#9ecae1"}
ORDER_COLOURS = dict(zip(ORDERS, ("#6c757d", "#e09f3e", "#1b6ca8"), strict=True))
ARM_COLOURS = {"mlx-lm": "#6c757d", "flashnorm": "#1b6ca8"}


def plot_timelines(timelines: Sequence[Timeline], about: str, path: str) -> Path:
    """The timelines as the paper's Fig. 10 draws them, one below the other, to one scale."""
    figure = _figure(9, 1.2 + 1.35 * len(timelines))
    from matplotlib.patches import Patch

    longest = max(t.total for t in timelines)
    panels = figure.subplots(len(timelines), sharex=True, squeeze=False)[:, 0]
    for axes, timeline in zip(panels, timelines, strict=True):
        for span in timeline.spans:
            place, length = 1 if span.unit == "vector" else 0, span.end - span.start
            colour, wide = COLOURS[span.work], length >= longest / 100
            edge = "black" if wide else colour  # the frame of a narrow bar would hide it
            axes.barh(place, length, 0.9, span.start, color=colour, edgecolor=edge, linewidth=0.8)
            if length >= longest / 11:
                axes.text(span.start + length / 2, place, span.work, ha="center", va="center", fontsize=9)
        axes.set_yticks([0, 1], ["matrix unit", "vector unit"])
        cycles = f"bubble {timeline.bubble}, {timeline.total} cycles in all"
        axes.set_title(f"{timeline.order}, W {timeline.layout}: {cycles}", fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[-1].set(xlabel="cycle", xlim=(0, 1.02 * longest))
    panels[-1].legend(
        handles=[Patch(facecolor=colour, edgecolor="black", label=work) for work, colour in COLOURS.items()],
        loc="upper right",
        fontsize=8,
        ncols=len(COLOURS),
        bbox_to_anchor=(1, 1.28),
        frameon=False,
    )
    figure.suptitle(f"Simulated: norm and projection, {about}", fontsize=11)
    return _saved(figure, path)


def plot_sweep(rows: Sequence[tuple[int, dict[str, Timeline]]], about: str, path: str) -> Path:
    """Left: the bubble. Right: the time that each order takes of the sequential one's."""
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    ratios = [ratio for ratio, _ in rows]
    for order in ORDERS:
        left.plot(ratios, [row[order].bubble for _, row in rows], "o-", color=ORDER_COLOURS[order], label=order)
        shares = [100 * row[order].total / row["sequential"].total for _, row in rows]
        right.plot(ratios, shares, "o-", color=ORDER_COLOURS[order], label=order)
    left.set(title="Before the matrix unit starts", ylabel="bubble (cycles)")
    left.set_yscale("symlog", base=2, linthresh=1)
    left.yaxis.set_major_formatter("{x:.0f}")
    right.set(title="In all", ylabel="cycles (% of sequential)", ylim=(0, 105))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [str(ratio) for ratio in ratios])
        axes.set_xlabel("n/m")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(f"Simulated: {about}", fontsize=11)
    return _saved(figure, path)


def plot_predictions(speeds: dict[str, dict[str, float]], about: str, path: str) -> Path:
    """Bars of tokens a second, a group for each machine."""
    figure = _figure(9, 1.6 + 0.36 * len(speeds))
    axes = figure.subplots()
    arms = [arm for arm in ARM_COLOURS if all(arm in row for row in speeds.values())]
    height = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        places = [y + (i - (len(arms) - 1) / 2) * height for y in range(len(speeds))]
        bars = axes.barh(
            places,
            [row[arm] for row in speeds.values()],
            height,
            color=ARM_COLOURS[arm],
            label=arm,
            hatch="///",
            edgecolor="white",
        )
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.invert_yaxis()
    axes.set(xlabel="tokens a second, predicted")
    axes.margins(x=0.08)
    axes.set_title(f"Predicted, not measured: {about}", fontsize=11)
    axes.legend(fontsize=9)
    return _saved(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FlashNormError("--plot needs matplotlib: pip install 'flashnorm-mlx[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Any, path: str) -> Path:
    target = Path(path).expanduser()
    try:
        figure.savefig(target, dpi=130)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FlashNormError(f"--plot {path}: {reason}") from None
    return target
