"""A report as a person reads it: what it ran on, a table, and what to be careful about."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HEAD = (
    *("test", "arm", "tok/s", "mean ± sd", "× baseline", "× mlx-lm"),
    *("first token", "GB/s", "of memory's", "peak MB", "launches"),
)

#: Columns that a narrow terminal has room for, and how wide one must be for all.
FEW, WIDE = (0, 1, 2, 4, 5), 120


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report."""
    for line in circumstances(report):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if report["rows"]:
        if not console.is_terminal:
            console.width = max(console.width, 2 * WIDE)
        columns = range(len(HEAD)) if console.width >= WIDE else FEW
        table = Table(*(HEAD[i] for i in columns), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for row in report["rows"]:
            for found in cells(row):
                table.add_row(*(escape(found[i]) for i in columns))
            table.add_section()
        console.print(table)
    for line in remarks(report):
        console.print(line, markup=False, soft_wrap=True)


def circumstances(report: dict[str, Any]) -> list[str]:
    """What was measured, on what."""
    model, machine = report["model"], report["machine"]
    weights = f"{model['bits']}-bit (group {model['group_size']})" if model["bits"] else "not quantised"
    source = ", random weights" if model["source"] == "shape" else ""
    sizes = [f"{model['parameters'] / 1e6:.1f} M parameters"] if model["parameters"] else []
    sizes += [f"{model['file_bytes'] / 1e6:.1f} MB"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    cores = f", {machine['gpu_cores']} GPU cores" if machine["gpu_cores"] else ""
    chip = f" ({machine['chip']})" if machine["chip"] and machine["chip"] not in machine["device"] else ""
    lines = [
        f"{model['name']}{source}: {weights}, computed in {model['dtype']}, {', '.join(sizes)}",
        f"{machine['device']}{chip}{cores}{memory}, {machine['os']}, MLX {machine['mlx']}, mlx-lm {machine['mlx_lm']}",
    ]
    if found := report["bandwidth"]:
        rates = ", ".join(f"{kind} {rate / 1e9:.1f} GB/s" for kind, rate in found.items())
        lines.append(f"memory, measured: {rates}")
    extra = [f"{k}={v}" for k, v in machine["environment"].items()]
    extra += [str(machine["power_source"])] if machine["power_source"] else []
    return lines + ([", ".join(extra)] if extra else [])


def cells(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row of the table for each arm."""
    lines = []
    for i, (arm, found) in enumerate(row["arms"].items()):
        name = label(row) if i == 0 else ""
        speed = found.get("tokens_per_second")
        if speed is None:
            lines.append((name, arm, "–", found.get("error", "not measured"), *[""] * (len(HEAD) - 4)))
            continue
        first = found.get("first_token_s")
        share = found.get("bandwidth_share")
        lines.append(
            (
                name,
                arm,
                f"{speed['median']:.4g}",
                f"{speed['mean']:.4g}" + (f" ± {speed['sd']:.2g}" if speed["sd"] is not None else ""),
                "1" if arm == "baseline" else between(found.get("over_baseline")),
                "1" if arm == "mlx-lm" else between(found.get("over_mlx_lm")),
                milliseconds(first["median"]) if first else "",
                f"{found['bandwidth'] / 1e9:.3g}" if "bandwidth" in found else "",
                f"{100 * share:.0f} %" if share else "",
                f"{found['peak_bytes'] / 1e6:.0f}",
                str(found.get("launches", "")),
            )
        )
    return lines


def milliseconds(seconds: float) -> str:
    """Three figures, and no exponent."""
    ms = 1000 * seconds
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def label(row: dict[str, Any]) -> str:
    """``pp512``, ``tg128 @ d4096, b4``: as llama-bench abbreviates them."""
    name = f"pp{row['prompt']}" * (row["prompt"] > 0) + "+" * (row["test"] == "generate")
    name += f"tg{row['generated']}" * (row["generated"] > 0)
    name += f" @ d{row['depth']}" * (row["depth"] > 0)
    return name + f", b{row['batch']}" * (row["batch"] > 1)


def between(found: dict[str, Any] | None) -> str:
    """``1.12 [1.10, 1.14]``"""
    if found is None:
        return ""
    limits = f" [{found['low']:.3f}, {found['high']:.3f}]" if found["low"] is not None else ""
    return f"{found['value']:.3f}{limits}"


def remarks(report: dict[str, Any]) -> list[str]:
    """The share recovered, what was left out, and every warning."""
    lines = []
    for row in report["rows"]:
        if row["recovered"]:
            lines.append(f"{label(row)}: share of the norms' cost that FlashNorm recovers {between(row['recovered'])}")
    first = [f"{arm} {f['first_token_s']:.2f} s" for arm, f in report["loading"].items()]
    lines += [f"very first token, compilation included, which no other figure includes: {', '.join(first)}"]
    lines += [f"{arm}: not available: {why}" for arm, why in report["unavailable"].items()]
    lines += [f"warning: {line}" for line in report["warnings"]]
    lines += [f"warning: {label(row)}: {line}" for row in report["rows"] for line in row["warnings"]]
    if report["interrupted"]:
        lines.append("interrupted: the repetitions up to then")
    return lines
