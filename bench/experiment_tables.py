"""Tables of the experiments with folds, from bench/results; ``tables.py`` puts them where their markers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Every device's result of one name.
Results = Callable[[str], list[dict[str, Any]]]


def epsilon_table(results: Results) -> str:
    lines = _head("ε", "RMS of the residual", "exact (ε/s²)", "ε kept", "no ε")
    for result in results("epsilon.json"):
        for row in sorted(result["rows"], key=lambda row: (row["eps"], -row["residual_rms"])):
            errors = " | ".join(f"{row['errors'][form]:.1e}" for form in ("exact", "kept", "none"))
            lines.append(f"| {row['eps']:g} | {row['residual_rms']:g} | {errors} |")
    return "\n".join(lines)


def multiplier_table(results: Results) -> str:
    """Multiplications a token and layer, in the mean over layers; each column has what stands left of it."""
    forms = ("stock", "folded", "deferred", "glu", "rope", "cancelled", "reglu", "engine")
    names = ("as stock", "gain folded", "scale deferred", "GLU (§2)", "in RoPE (§3)", "cancelled (§4)", "if ReGLU (§2)")
    lines = _head("shape", *names, "ours, plain", "of all in the layer, stock")
    for result in results("multipliers.json"):
        for row in sorted(result["rows"], key=lambda row: row["matrix_products"]):
            counts = " | ".join(f"{row['mean'][form]:,}" for form in forms)
            lines.append(f"| {row['shape']} | {counts} | {100 * row['mean']['stock'] / row['matrix_products']:.2f} % |")
    return "\n".join(lines)


def quantised_layer_table(results: Results) -> str:
    """Groups of 64."""
    wanted = (0.1, 0.3, 0.5, 1.0)
    lines = _head("weights", "bits", "form", *(f"spread {spread:g}" for spread in wanted))
    for result in results("quantisation.json"):
        rows = {(r["weights"], r["bits"], r["spread"]): r for r in result["synthetic"] if r["group_size"] == 64}
        for weights, bits in dict.fromkeys(key[:2] for key in rows):
            for form in ("fold", "keep"):
                errors = " | ".join(f"{100 * rows[weights, bits, spread][form]:.3g} %" for spread in wanted)
                lines.append(f"| {weights} | {bits} | {form} | {errors} |")
    return "\n".join(lines)


def quantised_demo_table(results: Results) -> str:
    lines = _head("bits", "group", "MB", "perplexity: fold", "keep", "mlx-lm", "KL: fold", "keep", "mlx-lm")
    for result in results("quantisation.json"):
        rows = {(row["bits"], row["group_size"], row["form"]): row for row in result["demo"]}
        for bits, group in dict.fromkeys(key[:2] for key in rows if key[0]):
            found = [rows.get((bits, group, form)) for form in ("fold", "keep", "mlx-lm")]
            cells = [f"{row['perplexity']:.4f}" if row else "–" for row in found]
            cells += [f"{row['kl']:.2e}" if row else "–" for row in found]
            lines.append(f"| {bits} | {group} | {rows[bits, group, 'fold']['megabytes']:.1f} | {' | '.join(cells)} |")
        full = rows[None, None, "full precision"]
        lines.append(f"| 16 | – | {full['megabytes']:.1f} | {full['perplexity']:.4f} | – | – | – | – | – |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


TABLES: dict[str, Callable[[Results], str]] = {
    "epsilon": epsilon_table,
    "multipliers": multiplier_table,
    "quantised-layer": quantised_layer_table,
    "quantised-demo": quantised_demo_table,
}
