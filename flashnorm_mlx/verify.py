"""Our three arms against stock mlx-lm, on one checkpoint, in float32."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step

from .checkpoint import open_checkpoint
from .errors import FlashNormError
from .layers.norm import ARMS
from .loader import Progress, configured, load_model, load_tokenizer
from .paths import check_finite
from .selfcheck import relative_error

#: So many tokens are in front of those that are decoded.
PROMPT = 16

#: Read when no text is given and the folder has no heldout.jsonl.
TEXT = (
    "The norm of a vector is one number, and every product behind it waits for that number. But a product is linear: "
    "multiply first, scale afterwards, and the answer is the same. So the weights can carry the gain, the scale can "
    "travel behind the product, and the norm is gone from the path. What is left to do is to check it."
)


@dataclass(frozen=True)
class Result:
    """One arm beside the reference. Errors are relative to the reference's largest logit."""

    arm: str
    logit_error: float
    #: Index of the first token that differs in greedy decoding; None where none does.
    first_difference: int | None
    perplexity: float
    ok: bool


@dataclass(frozen=True)
class Verification:
    """What ``flashnorm verify`` found. ``ok``: the arms that must agree do, ``none`` need not."""

    reference_perplexity: float
    tokens: int
    #: Where the text is from.
    text: str
    greedy_tokens: int
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        return all(r.ok for r in self.results)


def verify(
    path: Path,
    *,
    text: Path | None = None,
    greedy_tokens: int = 48,
    max_tokens: int = 512,
    tolerance: float = 1e-4,
    progress: Progress | None = None,
) -> Verification:
    """Compare ``baseline``, ``flashnorm`` and ``none`` with stock mlx-lm: logits, greedy tokens, perplexity.

    Args:
        path: a model's folder.
        text: a file that the perplexity is of, see :func:`read_ids`; its first ``max_tokens`` tokens are read, or as
            many as are the same to both. None: the model's own heldout.jsonl, or else a paragraph of ours.
        greedy_tokens: how many tokens are decoded one by one after the text's first 16.
        tolerance: largest relative logit error that ``baseline`` and ``flashnorm`` may have.

    Raises:
        FlashNormError: if either can't load it, or the text is too short.
    """
    progress = progress or (lambda word, done, total: None)
    args = configured(open_checkpoint(path), {}).args  # says what is wrong with it before anything else is loaded
    held_out = path / "heldout.jsonl"
    text = held_out if text is None and held_out.is_file() else text
    tokenizer = load_tokenizer(path)
    ids = (tokenizer.encode(TEXT) if text is None else read_ids(text, tokenizer))[:max_tokens]
    if (most := args.comparable) is not None:
        ids, greedy_tokens = ids[:most], max(1, min(greedy_tokens, most - PROMPT))
    if len(ids) < 2:
        raise FlashNormError("the text is too short: at least two tokens are needed")
    progress("verifying", 0, 1 + len(ARMS))
    want = _reference(path, ids, greedy_tokens)
    results = []
    for i, arm in enumerate(ARMS):
        progress("verifying", 1 + i, 1 + len(ARMS))
        got = _run(lambda arm=arm: load_model(path, arm=arm, dtype="float32"), ids, greedy_tokens)  # type: ignore[misc]
        error = relative_error(got.logits, want.logits)
        first = next((n for n, (a, b) in enumerate(zip(got.greedy, want.greedy, strict=True)) if a != b), None)
        results.append(Result(arm, error, first, got.perplexity, arm == "none" or error <= tolerance))
    progress("verifying", 1 + len(ARMS), 1 + len(ARMS))
    source = "a paragraph of ours, as the model has no heldout.jsonl" if text is None else str(text)
    return Verification(want.perplexity, len(ids), source, greedy_tokens, tuple(results))


def read_ids(file: Path, tokenizer: Any) -> list[int]:
    """The tokens of a text file, or of a .jsonl file whose lines are ``{"messages": [...]}``: chats, in the template.

    Raises:
        FlashNormError: if the file can't be read as what its name says.
    """
    try:
        check_finite(file)
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return list(tokenizer.encode(text))
        chats = [json.loads(line)["messages"] for line in text.splitlines() if line.strip()]
        return [i for chat in chats for i in tokenizer.apply_chat_template(chat)]
    except FlashNormError:
        raise
    except OSError as error:
        raise FlashNormError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FlashNormError(f"{file}: not UTF-8 text") from None
    except Exception as error:  # json, and whatever a chat template raises
        raise FlashNormError(
            f'{file}: not lines of {{"messages": [...]}} for this model\'s template: {error}'
        ) from None


@dataclass(frozen=True)
class _Run:
    logits: mx.array
    greedy: list[int]
    perplexity: float


def _run(make: Callable[[], nn.Module], ids: list[int], greedy_tokens: int) -> _Run:
    """One model's logits, greedy tokens and perplexity; the model is let go afterwards."""
    model = make()
    tokens = mx.array(ids)
    logits = model(tokens[None])[0].astype(mx.float32)
    loss = nn.losses.cross_entropy(logits[:-1], tokens[1:], reduction="mean")
    mx.eval(logits, loss)
    steps = generate_step(tokens[:PROMPT], model, max_tokens=greedy_tokens)
    greedy = [int(token) for token, _ in steps]
    del model
    gc.collect()
    mx.clear_cache()
    return _Run(logits, greedy, math.exp(min(float(loss.item()), 700.0)))  # type: ignore[arg-type]


class _Float32Embedding(nn.QuantizedEmbedding):
    """In an fp4 or fp8 format a table yields bfloat16, whatever the model's dtype; a reference is in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(mx.float32)


def _reference(path: Path, ids: list[int], greedy_tokens: int) -> _Run:
    from mlx_lm.utils import load_model as load_with_mlx_lm

    def stock() -> nn.Module:
        model, _ = load_with_mlx_lm(path, lazy=True)
        model.set_dtype(mx.float32)
        for module in model.modules():
            if type(module) is nn.QuantizedEmbedding:
                module.__class__ = _Float32Embedding
        return model

    try:
        return _run(stock, ids, greedy_tokens)
    except (Exception, SystemExit) as error:  # whatever mlx-lm raises, it is the reference that is missing
        raise FlashNormError(
            f"{path}: stock mlx-lm can't load it or run it, so there is nothing to compare with: {error}"
        ) from None
