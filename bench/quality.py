"""What folding and quantising cost the demo: perplexity of its held-out text, and where tokens differ.

    python bench/quality.py          writes bench/results/<device>/quality.json; some minutes on a CPU

Six forms of one checkpoint, all computed in float32 from the file's values, so that only the weights differ: bf16 as
shipped and folded (rounded to bf16 again), 8 and 4 bits by stock mlx-lm, and folded-then-quantised.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from record import ROOT, results_folder
from reports import quiet

from flashnorm_mlx import convert, load
from flashnorm_mlx.info import device_name
from flashnorm_mlx.loader import load_model, load_tokenizer
from flashnorm_mlx.measure.source import quantised
from flashnorm_mlx.verify import read_ids

DEMO = ROOT / "models" / "demo"
WINDOW = 1024


def log_probabilities(folder: Path, ids: list[int]) -> mx.array:
    """Log-probabilities of every next token, window by window: ``[windows, WINDOW, vocab]``."""
    model = load_model(folder, dtype="float32")
    windows = [ids[i : i + WINDOW + 1] for i in range(0, len(ids) - WINDOW, WINDOW)]
    parts = [nn.log_softmax(model(mx.array([w[:-1]])), axis=-1) for w in windows]
    out = mx.concatenate(parts)
    mx.eval(out)
    return out


def greedy_answers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Up to 64 greedy tokens for each prompt."""
    model, tokenizer = load(folder, dtype="float32")
    answers = []
    for prompt in prompts:
        answer = []
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=64):
            if token in tokenizer.eos_token_ids:
                break
            answer.append(int(token))
        answers.append(answer)
    return answers


def opening_prompts(count: int) -> list[list[int]]:
    """The first message of each held-out conversation, in the chat template."""
    tokenizer = load_tokenizer(DEMO)
    chats = [json.loads(line)["messages"] for line in (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    openings = [next(m for m in chat if m["role"] == "user") for chat in chats[:count]]
    return [tokenizer.apply_chat_template([m], add_generation_prompt=True) for m in openings]


def stock(folder: Path, bits: int) -> Path:
    """The demo as stock mlx-lm quantises it."""
    return quantised(DEMO, folder, Namespace(dtype="bfloat16", bits=bits, group_size=64), quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for quality.json (default bench/results/<device>)")
    parser.add_argument("--quick", action="store_true", help="of a little text: whether it runs")
    args = parser.parse_args()
    out = args.out or (Path(tempfile.mkdtemp(prefix="bench-")) if args.quick else results_folder())
    windows, count = (1, 1) if args.quick else (24, 60)
    ids = read_ids(DEMO / "heldout.jsonl", load_tokenizer(DEMO))[: windows * WINDOW + 1]
    wanted = mx.array([ids[i + 1 : i + WINDOW + 1] for i in range(0, len(ids) - WINDOW, WINDOW)])
    with tempfile.TemporaryDirectory() as scratch:
        forms = {
            "bf16, stock": DEMO,
            "bf16, folded": convert(DEMO, Path(scratch) / "folded", quantize=False),
            "8-bit, stock": stock(Path(scratch) / "stock8", 8),
            "8-bit, folded": convert(DEMO, Path(scratch) / "ours8", bits=8),
            "4-bit, stock": stock(Path(scratch) / "stock4", 4),
            "4-bit, folded": convert(DEMO, Path(scratch) / "ours4"),
        }
        prompts = opening_prompts(count)
        reference: mx.array | None = None
        expected: list[list[int]] = []
        rows: list[dict[str, Any]] = []
        for name, folder in forms.items():
            got = log_probabilities(folder, ids)
            reference = got if reference is None else reference
            loss = -mx.mean(mx.take_along_axis(got, wanted[..., None], axis=-1))
            kl = mx.mean(mx.sum(mx.exp(reference) * (reference - got), axis=-1))
            answers = greedy_answers(folder, prompts)
            expected = expected or answers
            same = mx.mean(mx.argmax(got, axis=-1) == mx.argmax(reference, axis=-1))
            rows.append(
                {
                    "form": name,
                    "perplexity": round(math.exp(loss.item()), 5),
                    "kl_to_stock": float(f"{max(kl.item(), 0.0):.3g}"),
                    "same_top_token": round(same.item(), 5),
                    "same_answers": sum(a == b for a, b in zip(answers, expected, strict=True)),
                    "answers": len(prompts),
                    "megabytes": round(sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6, 2),
                }
            )
            print(rows[-1], flush=True)
    result = {
        "device": device_name(),
        "machine": platform.platform(),
        "mlx": mx.__version__,
        "tokens": wanted.size,
        "window": WINDOW,
        "rows": rows,
    }
    target = out / "quality.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
