"""Measure the demo model: held-out perplexity in float32, its norm gains, sums it has never seen, and sample answers.

    python models/demo/measure.py [MODEL] [--write FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import vocabulary  # noqa: E402
from corpus import heldout  # noqa: E402
from dataset import ASSISTANT, encode  # noqa: E402
from saving import write_json  # noqa: E402
from topics.arithmetic import equation, operands  # noqa: E402
from topics.language import Dice  # noqa: E402

PROBES: tuple[tuple[str, ...], ...] = (
    ("What is FlashNorm?", "Why is that?"), ("Why does 1/RMS commute with the product?",), ("what does flashnorm convert do",),
    ("Which models are supported?", "Is it faster?"), ("What is RMSNorm?",), ("Why is a post-norm special?",), ("What is quantization?",),
    ("Hello!", "My name is Zelda.", "Tell me a story about a dragon near the sea.", "Who helped the dragon?", "What is my name?"),
    ("What is 347 + 285?", "And minus 32?"), ("Tom has 24 apples and gives away 9. How many are left?",), ("What is 7 times 8?",),
    ("How many minutes are 3 hours?",), ("Which is larger, 412 or 398?",), ("What is the capital of France?",), ("Who is Albert Einstein?",),
    ("Write a Python program to sort a list.",), ("Tell me a joke.", "Another one!"), ("What comes after Friday?",), ("What do blue and yellow make?",),
    ("How are you today?", "I am sad."), ("Who are you?",), ("What can you do?",), ("What is my name?",), ("Write a poem about the moon.",),
    ("Spell elephant.",), ("Thank you!", "Bye"), ("what is the opposite of hot",), ("Count from 5 to 11.",), ("Do penguins fly?",),
    ("What is the best laptop for a student?",), ("I love pizza", "what food do I like?"), ("Can you help me with my homework?",),
    ("system: You are a pirate.", "What is folding?"), ("system: Answer briefly.", "What is MLX?", "What is 56 - 38?"),
    ("system: Your name is Nora.", "Who are you?"),
)


def load(folder: Path) -> nn.Module:
    """The model in float32, by stock mlx-lm's own class."""
    from mlx_lm.models import llama

    model = llama.Model(llama.ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    model.load_weights([(name, weight.astype(mx.float32)) for name, weight in weights.items()])
    return model


def perplexity(model: nn.Module, processor: Any) -> dict[str, float]:
    """exp of the mean cross entropy a token over the held-out conversations, each read alone from its <s> on: over every
    token after <s>, and over the assistant's (its words and <|end|>)."""
    total, total_answers, count, answers = 0.0, 0.0, 0, 0
    for messages in heldout():
        ids, speakers = encode(processor, messages)
        tokens = mx.array([ids])
        each = nn.losses.cross_entropy(model(tokens[:, :-1]).astype(mx.float32), tokens[:, 1:])[0]
        own = mx.array(speakers[1:]) == ASSISTANT
        total, total_answers = total + float(each.sum()), total_answers + float((each * own).sum())
        count, answers = count + len(ids) - 1, answers + int(own.sum())
    return {"perplexity": round(math.exp(total / count), 4), "tokens": count,
            "answer_perplexity": round(math.exp(total_answers / answers), 4), "answer_tokens": answers}


def gains(folder: Path) -> dict[str, dict[str, float]]:
    """Least, mean, greatest and standard deviation of the norm gains, by kind of norm."""
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    table = {}
    for kind in ("input_layernorm", "post_attention_layernorm", "model.norm"):
        values = mx.concatenate([w.astype(mx.float32) for name, w in sorted(weights.items()) if kind in name])
        table[kind] = {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max()), "sd": float(values.std())}
    return {kind: {name: round(float(value), 4) for name, value in row.items()} for kind, row in table.items()}


def answer(model: nn.Module, processor: Any, messages: list[dict[str, str]], limit: int = 120) -> str:
    """The greedy answer to the conversation so far."""
    from mlx_lm.models.cache import make_prompt_cache

    ids = [vocabulary.BOS]
    for message in messages:
        ids += [vocabulary.ROLE_IDS[message["role"]], *processor.encode(message["content"]), vocabulary.END]
    cache = make_prompt_cache(model)
    found: list[int] = []
    step = mx.array([[*ids, vocabulary.ROLE_IDS["assistant"]]])
    while len(found) < limit:
        token = int(model(step, cache=cache)[0, -1].argmax().item())
        if token in (vocabulary.END, vocabulary.EOS):
            break
        found.append(token)
        step = mx.array([[token]])
    return str(processor.decode(found))


def converse(model: nn.Module, processor: Any, said: tuple[str, ...]) -> list[tuple[str, str]]:
    """The questions in one conversation with their answers; "system: ..." sets the system prompt."""
    messages: list[dict[str, str]] = []
    pairs = []
    for text in said:
        if text.startswith("system: "):
            messages.append({"role": "system", "content": text.removeprefix("system: ")})
            pairs.append((text, ""))
            continue
        messages.append({"role": "user", "content": text})
        reply = answer(model, processor, messages)
        messages.append({"role": "assistant", "content": reply})
        pairs.append((text, reply))
    return pairs


def unseen_sums(model: nn.Module, processor: Any, count: int) -> dict[str, str]:
    """How many of the sums reserved to the held-out text it gets right."""
    dice, table = Dice("unseen"), {}
    for sign in "+-":
        right = 0
        for _ in range(count):
            x, y = operands(dice, sign, held_out=True)
            right += answer(model, processor, [{"role": "user", "content": f"What is {x} {sign} {y}?"}], 24) == equation(x, sign, y) + "."
        table[f"x {sign} y"] = f"{right} of {count}"
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=HERE)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--sums", type=int, default=100, help="how many unseen sums to try of each kind")
    args = parser.parse_args()
    model, processor = load(args.model), vocabulary.load(args.model / "tokenizer.model")
    for said in PROBES:
        for question, reply in converse(model, processor, said):
            print(f"> {question}\n{reply}", flush=True)
        print()
    numbers = {"heldout": perplexity(model, processor), "unseen_sums": unseen_sums(model, processor, args.sums), "gains": gains(args.model)}
    print(json.dumps(numbers, indent=1))
    if args.write:
        write_json(args.write, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
