"""What cancelling a norm's scale in a QK-norm costs, if ε is kept as it is, where the exact one is ε/s² (§4.1).

    python bench/epsilon.py             writes bench/results/<device>/epsilon.json; takes about 20 s

``RMSNorm(s·p; ε) = RMSNorm(p; ε/s²)``. The paper leaves s out and keeps ε ("this should not matter"). Random models of
Qwen3's kind, whose residual has the given RMS in every layer; float32, and the error of their logits relative to stock
mlx-lm's, the largest of any logit over the largest logit; the median of some seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten
from random_model import stock_model
from record import results_folder, save_row

from flashnorm_mlx import architectures, fold
from flashnorm_mlx.layers import norm

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
#: The QK-norm's ε, of the norm's own and of the scale that was left out in front of it.
FORMS: dict[str, Callable[[float, mx.array | None], float | mx.array]] = {
    "exact": fold.cancelled_eps,
    "kept": lambda eps, scale: eps,
    "none": lambda eps, scale: eps if scale is None else 1e-30,
}


def random_weights(model: Any, rms: float, seed: int) -> dict[str, mx.array]:
    """Gains from 0.5 to 1.5, projections that keep a vector's size, and a residual of about RMS ``rms`` throughout."""
    mx.random.seed(seed)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if "norm" in name:
            weights[name] = mx.random.uniform(0.5, 1.5, value.shape)
        elif "embed" in name:
            weights[name] = mx.random.normal(value.shape) * rms
        else:
            written = rms / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weights[name] = mx.random.normal(value.shape) * (written * value.shape[-1] ** -0.5)
    return weights


def measure(config: dict[str, Any], rms: float, seed: int, length: int = 64) -> tuple[dict[str, float], float]:
    """Relative error of the logits in every form, and the RMS that the embedded residual really has."""
    stock = stock_model(config)
    weights = random_weights(stock, rms, seed)
    stock.load_weights(list(weights.items()))
    family = architectures.find(config["model_type"])
    model = family.Model(family.Config.from_dict(config))
    model.load_weights(list(model.sanitize(dict(weights)).items()))
    ids = mx.random.randint(0, config["vocab_size"], (1, length))
    want = stock(ids)
    errors = {}
    for name, form in FORMS.items():
        with mock.patch.object(fold, "cancelled_eps", form), mock.patch.object(norm, "deferring_pays", lambda a: True):
            errors[name] = (mx.max(mx.abs(model(ids) - want)) / mx.max(mx.abs(want))).item()
    return errors, mx.sqrt(mx.mean(mx.square(model.embed(ids)))).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rms", type=float, nargs="+", default=[1.0, 0.1, 0.02])
    parser.add_argument("--eps", type=float, nargs="+", default=[1e-6, 1e-5])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results_folder())
    args = parser.parse_args()
    for eps in args.eps:
        for rms in args.rms:
            found = [measure(CONFIG | {"rms_norm_eps": eps}, rms, seed) for seed in range(args.seeds)]
            errors = {form: [float(f"{errors[form]:.3g}") for errors, _ in found] for form in FORMS}
            row = {
                "eps": eps,
                "residual_rms": rms,
                "measured_rms": round(statistics.median(real for _, real in found), 5),
                "seeds": args.seeds,
                "errors": {form: statistics.median(runs) for form, runs in errors.items()},
                "runs": errors,
            }
            print({k: v for k, v in row.items() if k != "runs"}, flush=True)
            save_row(args.out, "epsilon", row, ("eps", "residual_rms"))


if __name__ == "__main__":
    main()
