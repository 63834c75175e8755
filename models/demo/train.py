"""Train the demo model from scratch: a Llama of five million parameters, on the corpus of `corpus.py`.

    python models/demo/train.py --out DIR                 about eight minutes on a data-centre GPU
    python models/demo/train.py --out DIR --resume        go on where it was interrupted

AdamW on float32 master weights, the products in bf16, warm-up and cosine. The loss is the cross entropy of the next token:
the assistant's words weigh 1, the other side's 0.1, padding 0. Norm gains have no weight decay and a higher learning rate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

sys.path.insert(0, str(Path(__file__).resolve().parent))

import vocabulary
from dataset import ASSISTANT, LENGTH, USER, Rows, build, heldout_rows, vocabulary_texts
from saving import save_checkpoint, save_model, write_json

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6,
    "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "vocab_size": vocabulary.SIZE, "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "bos_token_id": vocabulary.BOS, "eos_token_id": [vocabulary.EOS, vocabulary.END], "pad_token_id": vocabulary.PAD,
}
USER_WEIGHT = 0.1
GAIN_RATE = 3.0  # the norm gains' learning rate, relative to the matrices'
TRIAL = 40  # steps whose speed sets the number of steps when --minutes is given


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the finished model")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="choose the number of steps from the measured speed instead")
    parser.add_argument("--batch", type=int, default=64, help="rows of 1024 tokens a step")
    parser.add_argument("--conversations", type=int, default=400_000, help="size of the corpus")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=250, help="steps between held-out losses and checkpoints")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bf16")
    parser.add_argument("--plain-attention", action="store_true", help="attention from plain operations, for devices without a fused gradient")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "conversations", "every", "rate", "minutes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} must be above zero")
    if args.warmup < 0 or args.decay < 0:
        parser.error("--warmup and --decay must not be negative")
    if args.resume and not (args.out / "checkpoint.safetensors").exists():
        parser.error(f"nothing to resume in {args.out}")
    return args


def plain_attention(q: mx.array, k: mx.array, v: mx.array, cache: None, scale: float, mask: object) -> mx.array:
    """softmax(q kᵀ · scale, causal) v with grouped heads; q[B, H, L, D], k and v[B, G, L, D]."""
    batch, heads, length, size = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups, length, size)
    scores = (q * scale) @ k[:, :, None].swapaxes(-1, -2)
    scores = mx.where(mx.tri(length, dtype=mx.bool_), scores.astype(mx.float32), -mx.inf)
    return (mx.softmax(scores, axis=-1).astype(v.dtype) @ v[:, :, None]).reshape(batch, heads, length, size)


def new_model(plain: bool = False) -> nn.Module:
    from mlx_lm.models import llama

    if plain:
        llama.scaled_dot_product_attention = plain_attention
    return llama.Model(llama.ModelArgs.from_dict(CONFIG))


def learning_rate(step: int, total: int, warmup: int, highest: float) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the highest rate."""
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def batches(rows: Rows, size: int, seed: int, start: int) -> Iterator[tuple[mx.array, mx.array]]:
    """Endless batches (ids, speakers) from step `start` on; every epoch is a new order, given by seed and epoch."""
    per_epoch = max(len(rows[0]) // size, 1)
    step = start
    while True:
        epoch, first = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(rows[0]))
        for at in range(first, per_epoch):
            chosen = order[at * size : (at + 1) * size]
            yield mx.array(rows[0][chosen].astype(np.int32)), mx.array(rows[1][chosen])
        step = (epoch + 1) * per_epoch


def losses(model: nn.Module, ids: mx.array, speakers: mx.array) -> tuple[mx.array, mx.array]:
    """Cross entropy of each next token, and who says it: both [B, L]."""
    logits = model(ids[:, :-1]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, ids[:, 1:]), speakers[:, 1:]


def training_loss(worker: nn.Module, dtype: mx.Dtype, params: dict, ids: mx.array, speakers: mx.array) -> mx.array:
    """The weighted mean loss with `params` rounded to `dtype`; the worker only lends its structure."""
    worker.update(tree_map(lambda p: p.astype(dtype), params))
    each, who = losses(worker, ids, speakers)
    weight = (who == ASSISTANT) + USER_WEIGHT * (who == USER)
    return (each * weight).sum() / weight.sum()


def is_gain(path: str, weight: mx.array) -> bool:
    return weight.ndim == 1


class Trainer:
    """The master weights, their optimizers and the compiled step."""

    def __init__(self, args: argparse.Namespace) -> None:
        mx.random.seed(args.seed)
        self.args = args
        self.master, self.worker = new_model(args.plain_attention), new_model()
        self.master.apply(lambda p: p.astype(mx.float32))
        self.gains = optim.AdamW(args.rate, betas=[0.9, 0.95], weight_decay=0.0, bias_correction=True)
        self.matrices = optim.AdamW(args.rate, betas=[0.9, 0.95], weight_decay=args.decay, bias_correction=True)
        self.optimizer = optim.MultiOptimizer([self.gains, self.matrices], [is_gain])
        self.optimizer.init(self.master.trainable_parameters())
        self.step, self.total = 0, 10**9 if args.minutes else args.steps
        self.seconds = self.trial_end = 0.0
        self.history: list[dict[str, float]] = []
        self.update = self._compiled()

    def _compiled(self) -> Callable[[mx.array, mx.array], mx.array]:
        state = [self.master.state, self.gains.state, self.matrices.state]
        slow16 = mx.default_device().type == mx.cpu  # where products in bf16 are emulated
        loss = partial(training_loss, self.worker, mx.float32 if self.args.float32 or slow16 else mx.bfloat16)

        @partial(mx.compile, inputs=state, outputs=state)
        def update(ids: mx.array, speakers: mx.array) -> mx.array:
            value, grads = mx.value_and_grad(loss)(self.master.trainable_parameters(), ids, speakers)
            grads, _ = optim.clip_grad_norm(grads, 1.0)
            self.optimizer.update(self.master, grads)
            return value

        return update

    def advance(self, ids: mx.array, speakers: mx.array) -> mx.array:
        """One step; the loss comes back unevaluated, the new state is under way."""
        rate = learning_rate(self.step, self.total, self.args.warmup, self.args.rate)
        self.matrices.learning_rate, self.gains.learning_rate = mx.array(rate), mx.array(rate * GAIN_RATE)
        value = self.update(ids, speakers)
        mx.async_eval(value, self.master.state, self.gains.state, self.matrices.state)
        self.step += 1
        return value

    def heldout(self, rows: Rows) -> float:
        """Mean loss of the assistant's held-out tokens, in float32."""
        total = count = 0.0
        for at in range(0, len(rows[0]), 8):
            ids, speakers = mx.array(rows[0][at : at + 8].astype(np.int32)), mx.array(rows[1][at : at + 8])
            each, who = losses(self.master, ids, speakers)
            total += float((each * (who == ASSISTANT)).sum())
            count += float((who == ASSISTANT).sum())
        return total / count

    def state(self) -> dict[str, mx.array]:
        parts = {"model": self.master.parameters(), "gains": self.gains.state, "matrices": self.matrices.state}
        return dict(tree_flatten(parts))

    def save(self) -> None:
        progress = {"step": self.step, "total": self.total, "seconds": self.seconds, "history": self.history,
                    "seed": self.args.seed, "batch": self.args.batch, "conversations": self.args.conversations}
        save_checkpoint(self.args.out / "checkpoint.safetensors", self.state(), progress)

    def restore(self) -> None:
        """Continue from the checkpoint; the options that decide which data comes next must be the same."""
        loaded: Any = mx.load(str(self.args.out / "checkpoint.safetensors"), return_metadata=True)
        arrays, metadata = loaded
        progress = json.loads(metadata["progress"])
        for name in ("seed", "batch", "conversations"):
            if progress[name] != getattr(self.args, name):
                raise SystemExit(f"train.py: error: the checkpoint was made with --{name} {progress[name]}")
        parts: Any = tree_unflatten(list(arrays.items()))
        self.master.update(parts["model"])
        for optimizer, saved in ((self.gains, parts["gains"]), (self.matrices, parts["matrices"])):
            optimizer.state.update(saved)
        self.step, self.total = progress["step"], progress["total"]
        self.seconds, self.history = progress["seconds"], progress["history"]


def run(trainer: Trainer, rows: Rows, held: Rows) -> None:
    """Step until the end, with a progress bar, held-out losses and checkpoints."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    args, first = trainer.args, trainer.step
    start = time.perf_counter()
    began = start - trainer.seconds  # as if all earlier parts of an interrupted training had run just before
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=trainer.total, completed=first)
        for ids, speakers in batches(rows, args.batch, args.seed, first):
            if trainer.step >= trainer.total:
                return
            loss = trainer.advance(ids, speakers)
            last = trainer.step == trainer.total
            if trainer.step % 10 == 0 or last:
                value, trainer.seconds = float(loss), time.perf_counter() - began
                speed = args.batch * LENGTH * (trainer.step - first) / (time.perf_counter() - start)
                bar.update(task, total=trainer.total, completed=trainer.step, description=f"loss {value:.3f}  {speed:,.0f} tok/s")
                if not math.isfinite(value):
                    raise SystemExit("train.py: error: the loss is not finite; lower --rate")
            if trainer.step == 2 * TRIAL and args.minutes:
                trainer.total = planned_steps(args.minutes, trainer.seconds, trainer.trial_end)
            if trainer.step == TRIAL:
                trainer.trial_end = trainer.seconds
            if trainer.step % args.every == 0 or last:
                record = {"step": trainer.step, "loss": round(float(loss), 4), "heldout": round(trainer.heldout(held), 4)}
                trainer.seconds = time.perf_counter() - began
                trainer.history.append({**record, "seconds": round(trainer.seconds, 1)})
                bar.console.print(f"step {trainer.step} of {trainer.total}: {json.dumps(trainer.history[-1])}")
                trainer.save()


def planned_steps(minutes: float, now: float, earlier: float) -> int:
    """How many steps fit: the last TRIAL steps took from `earlier` to `now`; a fiftieth is left for measuring and saving."""
    left = minutes * 60 * 0.98 - now
    return 2 * TRIAL + max(int(left / ((now - earlier) / TRIAL)), TRIAL)


def finish(trainer: Trainer, tokenizer: Path) -> None:
    """Write the model folder: weights, configs, tokenizer, log."""
    out, args = trainer.args.out, trainer.args
    save_model(out, dict(tree_flatten(trainer.master.parameters())), CONFIG)
    if tokenizer.resolve() != (out / "tokenizer.model").resolve():
        (out / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    vocabulary.write_fast(out / "tokenizer.model", out)
    options = {name: getattr(args, name) for name in ("batch", "conversations", "rate", "warmup", "decay", "seed", "float32")}
    tokens = trainer.step * args.batch * LENGTH
    write_json(out / "training.json", {
        "device": mx.device_info().get("device_name", str(mx.default_device())), "mlx": version("mlx"), "options": options,
        "steps": trainer.step, "tokens": tokens, "seconds": round(trainer.seconds, 1),
        "tokens_per_second": round(tokens / max(trainer.seconds, 1e-9)), "history": trainer.history,
    })


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Path(__file__).resolve().parent / "tokenizer.model"
    if not tokenizer.exists():
        tokenizer = args.out / "tokenizer.model"
    if not tokenizer.exists():
        vocabulary.train(vocabulary_texts(args.seed, 6000), tokenizer)
    start = time.perf_counter()
    rows, held = build(args.seed, args.conversations, tokenizer), heldout_rows(tokenizer)
    print(f"corpus: {len(rows[0]):,} rows of {LENGTH} tokens in {time.perf_counter() - start:.0f} s", flush=True)
    trainer = Trainer(args)
    if args.resume:
        trainer.restore()
    try:
        run(trainer, rows, held)
    except KeyboardInterrupt:
        trainer.save()
        print(f"stopped at step {trainer.step}; go on with --resume", file=sys.stderr)
        return 130
    finish(trainer, tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
