"""What ``flashnorm timing`` shows, as rich's tables and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from .footprint import footprint
from .gantt import gantt
from .predict import (
    PUBLISHED_MACHINE,
    PUBLISHED_SHAPE,
    WITH_NORMS,
    WITHOUT_NORMS,
    Machine,
    apple_chips,
    cross_checked,
    fitted,
    machines,
    measured_reports,
    published,
    samples_of,
    typical_error,
)
from .shapes import read_shape
from .simulator import LAYOUTS, ORDERS, PAPER, Timeline, simulate
from .timing_plot import plot_predictions, plot_sweep, plot_timelines

RATIOS = (1, 2, 4, 8, 16, 32, 64)
SHOWN_ARMS = ("mlx-lm", "mlx-lm, no norms", "baseline", "flashnorm")
CHECKED_ARMS = ("mlx-lm", "flashnorm")

ASSUMED = """the paper's rules; assumed besides: each matrix cycle takes the next m² weights
in the order of storage, and waits as a whole for its inputs"""


@dataclass(frozen=True)
class Report:
    """What to print, and the file that was written, if one was asked for."""

    shown: RenderableType
    picture: str = ""


def cycles(n: int, k: int, m: int, *, width: int, plot: str | None = None) -> Report:
    """The paper's Fig. 10 for any sizes: a chart of its three orders, and a table of all orders and layouts."""
    timelines = {(order, layout): simulate(n, k, m, order, layout) for order in ORDERS for layout in LAYOUTS}
    drawn = [timelines[order, PAPER[order]] for order in ORDERS]
    slowest = timelines["sequential", "row-major"].total
    table = Table("order", "W", *right("bubble", "stalls", "after", "cycles", "time"))
    for timeline in timelines.values():
        counts = (timeline.bubble, timeline.stalls, timeline.tail, timeline.total)
        table.add_row(timeline.order, timeline.layout, *map(str, counts), f"{100 * timeline.total / slowest:.1f} %")
    about = f"n = {n}, k = {k}, m = {m}"
    picture = plot_timelines(drawn, about, plot) if plot else ""
    head = Text(f"simulated: RMSNorm(a) W, {about}\n")
    return Report(Group(head, gantt(drawn, width), Text(), table, Text(ASSUMED, style="dim")), str(picture))


def sweep(n: int, k: int, m: int, *, plot: str | None = None) -> Report:
    """The three orders over n/m, k keeping its ratio to n."""
    rows: list[tuple[int, dict[str, Timeline]]] = []
    table = Table(*right("n/m", "n", "k", *ORDERS, "FlashNorm saves"))
    for ratio in RATIOS:
        inputs = ratio * m
        outputs = max(1, round(inputs * k / n))
        row = {order: simulate(inputs, outputs, m, order, PAPER[order]) for order in ORDERS}
        rows.append((ratio, row))
        saved = 1 - row["flashnorm"].total / row["sequential"].total
        both = [f"{t.bubble}, {t.total}" for t in row.values()]
        table.add_row(str(ratio), str(inputs), str(outputs), *both, f"{100 * saved:.1f} %")
    about = f"m = {m}, k = {'n' if k == n else f'{k / n:g} n'}"
    picture = plot_sweep(rows, about, plot) if plot else ""
    head = Text(f"simulated: RMSNorm(a) W, {about}; bubble and cycles in all\n")
    return Report(Group(head, table), str(picture))


def prediction(shape: str, *, bits: int = 4, depth: int = 0, plot: str | None = None, details: bool = False) -> Report:
    """Tokens a second of a shape on Apple's chips, what the prediction rests on, and how far off it is elsewhere."""
    model = footprint(read_shape(shape), bits=bits, depth=depth)
    calibration = published()
    arms = [arm for arm in SHOWN_ARMS if arm in model.launches]
    table = Table("machine", *right("GB/s", *arms), title="predicted tokens/s")
    speeds = {}
    for machine in apple_chips():
        speeds[machine.name] = {
            arm: 1 / calibration.seconds(model.bytes, model.launches[arm], machine.bandwidth) for arm in arms
        }
        cells = [f"{speed:.0f}" for speed in speeds[machine.name].values()]
        table.add_row(machine.name, f"{machine.bandwidth / 1e9:g}", *cells)
    about = f"{shape}, {f'{bits}-bit' if bits else '16-bit'} weights, depth {depth}, batch 1"
    picture = plot_predictions(speeds, about, plot) if plot else ""
    counts = ", ".join(f"{arm} {model.launches[arm]}" for arm in arms)
    pair = f"{WITH_NORMS:g} and {WITHOUT_NORMS:g} tokens/s"
    lines = [
        "/40: the form with 40 GPU cores",
        f"time a token = bytes ÷ (share × bandwidth) + launches × cost; {model.bytes / 1e6:.1f} MB",
        f"launches, about: {counts}",
        *(["(the arm none: as flashnorm, by construction)"] if "flashnorm" in arms else []),
        f"from {pair} of {PUBLISHED_SHAPE} on an {PUBLISHED_MACHINE} (the paper):",
        f"share {100 * calibration.share:.0f} %, cost {1e6 * calibration.launch:.2f} µs; "
        "taken for every chip, checked on no other",
    ]
    head = Text(f"predicted, not measured: {about}\n")
    return Report(Group(head, table, Text("\n".join(lines)), Text(), check(details)), str(picture))


def check(details: bool) -> RenderableType:
    """The model against the machines that were measured, each shape predicted from the others."""
    found = measured_reports()
    if not found:
        return Text("not checked here: the measured rows (bench/results) are in the repository only")
    parts: list[RenderableType] = [
        Text("checked on measured machines, each shape predicted from the other shapes' rows:")
    ]
    for name, reports in found.items():
        parts += _checked(machines()[name], reports, details)
    return Group(*parts, *([] if details else [Text("(each row: --check)")]))


def _checked(machine: Machine, reports: list[dict[str, Any]], details: bool) -> list[RenderableType]:
    table = Table("arm", "shape", *right("depth", "measured", "predicted", "error"), title=f"{machine.name}, tokens/s")
    lines = []
    for arm in CHECKED_ARMS:
        samples = samples_of(reports, arm)
        checks = cross_checked(samples, machine.bandwidth)
        for c in checks:
            s = c.sample
            table.add_row(arm, s.shape, str(s.depth), f"{s.speed:.0f}", f"{c.predicted:.0f}", f"{100 * c.error:+.0f} %")
        table.add_section()
        worst = max((c.error for c in checks), key=abs)
        all_rows = fitted(samples, machine.bandwidth)
        lines.append(
            f"{machine.name}, {arm}: median error {100 * typical_error(checks):.0f} %, worst {100 * worst:+.0f} % "
            f"(fitted to all: cost {1e6 * all_rows.launch:.1f} µs, share {100 * all_rows.share:.0f} %)"
        )
    return [*([table] if details else []), Text("\n".join(lines))]


def right(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, justify="right") for name in names]
