"""Whether to fold a gain before quantising or to keep it beside the quantised weights.

    python bench/quantisation.py             the demo and synthetic layers; about five minutes on two CPU cores
    python bench/quantisation.py --quick     an eighth of the text, and one seed: less than a minute

Writes bench/results/<device>/quantisation.json. ``fold``: W diag(g) is quantised, as by ``flashnorm convert``.
``keep``: W is quantised, and g multiplied into the input. That is what plain mlx-lm quantisation is, and how this
package runs checkpoints that are quantised already; the demo is run by both, as a check.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as load_stock
from mlx_lm.utils import quantize_model
from record import ROOT, circumstances, results_folder

from flashnorm_mlx import convert, fold
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.info import device_name
from flashnorm_mlx.loader import configured, load_model, load_tokenizer
from flashnorm_mlx.verify import read_ids

DEMO = ROOT / "models" / "demo"
BITS, GROUPS = (4, 8), (32, 64, 128)
SPREADS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
WINDOW = 256
Row = dict[str, Any]


def rounded(weight: mx.array, bits: int, group_size: int) -> mx.array:
    """A weight after quantising, in float32 again."""
    packed = mx.quantize(weight, bits=bits, group_size=group_size)
    return mx.dequantize(*packed, bits=bits, group_size=group_size)


def layer_error(
    weights: str, spread: float, bits: int, group_size: int, seed: int, size: int = 512
) -> dict[str, float]:
    """Relative error (root mean square) of ``(x·g) Wᵀ`` with ``log g ~ N(0, spread²)`` and normal x.

    ``weights``: ``independent`` of g, normal; or ``compensating``, so that W diag(g) is normal: what training tends to
    where weights can undo a gain.
    """
    mx.random.seed(seed)
    gain = mx.exp(spread * mx.random.normal((size,)))
    weight, x = mx.random.normal((2 * size, size)), mx.random.normal((64, size))
    weight = weight / gain if weights == "compensating" else weight
    exact = (x * gain) @ weight.T
    got = {
        "fold": x @ rounded(fold.fold_gain(weight, gain), bits, group_size).T,
        "keep": (x * gain) @ rounded(weight, bits, group_size).T,
    }
    return {form: (mx.linalg.norm(y - exact) / mx.linalg.norm(exact)).item() for form, y in got.items()}


def synthetic(seeds: int) -> list[Row]:
    """A row for each kind of weights, spread, width and group."""
    rows = []
    for weights in ("independent", "compensating"):
        for bits in BITS:
            for group in GROUPS:
                for spread in SPREADS:
                    runs = [layer_error(weights, spread, bits, group, seed) for seed in range(seeds)]
                    errors = {form: float(f"{statistics.median(r[form] for r in runs):.4g}") for form in runs[0]}
                    rows.append({"weights": weights, "bits": bits, "group_size": group, "spread": spread, **errors})
    return rows


def gain_facts(path: Path) -> dict[str, float]:
    """Of the norms that fold, medians: ``spread``, the standard deviation of log g; and ``slope``.

    The latter is that of log |W's column| over log g: 0 for independent weights, -1 for compensating ones.
    """
    checkpoint = open_checkpoint(path)
    plan, arrays = configured(checkpoint, {}).plan(checkpoint.tensors), checkpoint.arrays()
    spreads, slopes = [], []
    for consumer, step in plan.gain_of.items():
        g = mx.log(mx.abs(fold.effective_gain(arrays[f"{step.norm}.weight"], plus_one=step.fold.plus_one)))
        column = mx.log(mx.linalg.norm(arrays[f"{consumer}.weight"].astype(mx.float32), axis=0))
        spreads.append(mx.std(g).item())
        slopes.append((mx.mean((g - mx.mean(g)) * column) / mx.var(g)).item())
    return {"spread": round(statistics.median(spreads), 4), "slope": round(statistics.median(slopes), 4)}


def kept(target: Path, bits: int, group_size: int) -> Path:
    """The demo, quantised by stock mlx-lm."""
    model, config = load_stock(DEMO)
    model, config = quantize_model(model, config, group_size, bits)
    target.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def log_probabilities(model: nn.Module, ids: list[int]) -> mx.array:
    """Of every next token, window by window: ``[windows, WINDOW, vocab]``."""
    windows = mx.array([ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW, WINDOW)])
    out = mx.concatenate([nn.log_softmax(model(w[None]), axis=-1) for w in windows])
    mx.eval(out)
    return out


def demo(tokens: int) -> list[Row]:
    """Perplexity of held-out text, and KL divergence from the full-precision model, a token; all in float32."""
    ids = read_ids(DEMO / "heldout.jsonl", load_tokenizer(DEMO))[: tokens + 1]
    wanted = mx.array([ids[i + 1 : i + WINDOW + 1] for i in range(0, len(ids) - WINDOW, WINDOW)])
    exact = log_probabilities(load_model(DEMO, dtype="float32"), ids)

    def judged(model: nn.Module, form: str, bits: int | None, group: int | None, folder: Path) -> Row:
        got = log_probabilities(model, ids)
        loss = -mx.mean(mx.take_along_axis(got, wanted[..., None], axis=-1)).item()
        kl = mx.mean(mx.sum(mx.exp(exact) * (exact - got), axis=-1), axis=-1).tolist()
        print(form, bits, group, math.exp(loss), statistics.mean(kl), flush=True)
        return {
            "form": form,
            "bits": bits,
            "group_size": group,
            "perplexity": round(math.exp(loss), 5),
            "kl": float(f"{statistics.mean(kl):.4g}"),
            "kl_of_windows": [float(f"{value:.4g}") for value in kl],
            "megabytes": round(sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6, 2),
        }

    rows = [judged(load_model(DEMO, dtype="float32"), "full precision", None, None, DEMO)]
    with tempfile.TemporaryDirectory() as scratch:
        for bits in BITS:
            for group in GROUPS:
                folder = convert(DEMO, Path(scratch) / f"fold-{bits}-{group}", bits=bits, group_size=group)
                rows.append(judged(load_model(folder, dtype="float32"), "fold", bits, group, folder))
                folder = kept(Path(scratch) / f"keep-{bits}-{group}", bits, group)
                rows.append(judged(load_model(folder, dtype="float32"), "keep", bits, group, folder))
                stock, _ = load_stock(folder)
                stock.set_dtype(mx.float32)
                rows.append(judged(stock, "mlx-lm", bits, group, folder))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="of a little text: whether it runs")
    parser.add_argument("--out", type=Path, help="folder for quantisation.json (default bench/results/<device>)")
    args = parser.parse_args()
    out = args.out or (Path(tempfile.mkdtemp(prefix="bench-")) if args.quick else results_folder())
    tokens, seeds = (2 * WINDOW, 1) if args.quick else (16 * WINDOW, 5)
    result = {"device": device_name(), "machine": platform.platform(), **circumstances(), "tokens": tokens}
    result |= {"seeds": seeds, "demo_gains": gain_facts(DEMO)}
    result |= {"synthetic": synthetic(seeds), "demo": demo(tokens)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "quantisation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
