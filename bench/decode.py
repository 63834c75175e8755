"""Decode speed of our arms and of stock mlx-lm, interleaved in one process.

    python bench/decode.py                      the table of the README, for this device
    python bench/decode.py --tokens 8 --repeat 3 --only demo

Batch 1, greedy, a 16-token prompt; a token is timed from call to value. Each repetition runs every contestant once,
in turn forwards and backwards; ratios are paired within a repetition. Each computes in its own default dtype: on the
CPU ours is float32 whatever the file says, stock's is the file's. Writes bench/results/<device>/decode.json; all of it
takes about ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as load_stock
from random_model import write_random
from record import ROOT, results_folder

from flashnorm_mlx.info import device_name
from flashnorm_mlx.loader import load_model

ARMS = ("baseline", "flashnorm", "none")
PROMPT = mx.arange(1, 17)[None]


def decode(model: Any, tokens: int) -> float:
    """Tokens a second of greedy decoding after the prompt."""
    cache = make_prompt_cache(model)
    y = mx.argmax(model(PROMPT, cache=cache)[:, -1], axis=-1)
    mx.eval(y)
    start = time.perf_counter()
    for _ in range(tokens):
        y = mx.argmax(model(y[None], cache=cache)[:, -1], axis=-1)
        mx.eval(y)
    return tokens / (time.perf_counter() - start)


def compare(folder: Path, tokens: int, repeat: int) -> dict[str, Any]:
    """Every contestant on one checkpoint. Where stock is very slow, it decodes fewer tokens a repetition."""
    contestants = {"mlx-lm": load_stock(folder)[0]} | {arm: load_model(folder, arm=arm) for arm in ARMS}
    speed = {name: decode(model, 2) for name, model in contestants.items()}  # warm-up
    counts = {name: max(2, min(tokens, int(4 * s))) for name, s in speed.items()}
    runs: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(repeat):
        order = list(contestants) if i % 2 == 0 else list(reversed(contestants))
        for name in order:
            runs[name].append(decode(contestants[name], counts[name]))
    return {
        name: {
            "tokens_per_second": round(statistics.median(values), 3),
            "over_mlx_lm": round(statistics.median(a / b for a, b in zip(values, runs["mlx-lm"], strict=True)), 3),
            "runs": [round(v, 3) for v in values],
            "tokens": counts[name],
        }
        for name, values in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=("demo", "SmolLM2-135M"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in ("demo", "SmolLM2-135M"):
            if args.only not in (None, model):
                continue
            for dtype, bits in ((mx.float32, None), (mx.float32, 4), (mx.float16, None), (mx.float16, 4)):
                name = str(dtype).removeprefix("mlx.core.")
                folder = Path(scratch) / f"{model}-{name}-{bits}"
                if model == "demo":
                    folder = rewrite(ROOT / "models" / "demo", folder, dtype, bits)
                else:
                    write_random(model, folder, dtype=dtype, bits=bits)
                rows.append(
                    {"model": model, "dtype": name, "bits": bits, "arms": compare(folder, args.tokens, args.repeat)}
                )
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "arms"}), end=" ")
                print({k: (v["tokens_per_second"], v["over_mlx_lm"]) for k, v in rows[-1]["arms"].items()}, flush=True)
    result = {"device": device_name(), "machine": platform.platform(), "mlx": mx.__version__, "rows": rows}
    target = results_folder() / "decode.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def rewrite(source: Path, folder: Path, dtype: mx.Dtype, bits: int | None) -> Path:
    """A trained checkpoint in another dtype, quantised as stock mlx-lm does it, or not."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import quantize_model

    model, config = load_stock(source)
    model.set_dtype(dtype)
    if bits:
        model, config = quantize_model(model, config, 64, bits)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in (*source.glob("tokenizer*"), *source.glob("*.jinja")):
        shutil.copyfile(file, folder / file.name)
    return folder


if __name__ == "__main__":
    main()
