"""The loops that are timed. A clock is read only when everything that was handed to the device is done.

Each takes a ``model(ids [B, L], cache) -> logits [B, L, V]`` as mlx-lm has them, and returns a :class:`Sample`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache

#: Prompt positions that go through at once, as in mlx-lm's generate.
CHUNK = 2048


class Timer:
    """The clock, and how work reaches the device: :meth:`launch` returns at once, :meth:`finish` when all is done."""

    def clock(self) -> float:
        """The time, when nothing is under way."""
        return time.perf_counter()

    def launch(self, *arrays: Any) -> None:
        mx.async_eval(*arrays)

    def glance(self) -> float:
        """The time, though there is work under way."""
        return time.perf_counter()

    def wait(self, array: Any) -> None:
        """Wait for this one; what was launched behind it goes on."""
        mx.eval(array)

    def finish(self, *arrays: Any) -> None:
        """Wait for these, and for whatever else is under way."""
        mx.eval(*arrays)
        mx.synchronize()
        mx.synchronize(generation_stream)


@dataclass(frozen=True)
class Sample:
    """``tokens`` in ``seconds``; ``first_token_s`` is when the first of them was there, where that is known."""

    tokens: int
    seconds: float
    first_token_s: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def filled_cache(model: Any, ids: mx.array, timer: Timer) -> list:
    """A fresh cache that holds ``ids [B, L]``; L may be 0."""
    cache = make_prompt_cache(model)
    for start in range(0, ids.shape[1], CHUNK):
        model(ids[:, start : start + CHUNK], cache=cache)
        timer.finish([c.state for c in cache])
    return cache


def prefill(model: Any, ids: mx.array, cache: list, timer: Timer) -> Sample:
    """Prompt ``ids [B, L]`` to first new token, in the order of mlx-lm's generate: the last position goes on its own.

    (So the logits of no other position are worked out.)
    """
    start = timer.clock()
    for at in range(0, ids.shape[1] - 1, CHUNK):
        model(ids[:, at : min(at + CHUNK, ids.shape[1] - 1)], cache=cache)
        timer.finish([c.state for c in cache])
    timer.finish(next_token(model, ids[:, -1:], cache))
    seconds = timer.clock() - start
    return Sample(ids.size, seconds, seconds)


def decode(model: Any, y: mx.array, cache: list, tokens: int, timer: Timer) -> Sample:
    """Greedy decoding, ``tokens`` steps of every row of ``y [B, 1]``; a step is handed over as the one before runs."""
    timer.finish(y, [c.state for c in cache])
    start = timer.clock()
    for _ in range(tokens):
        following = next_token(model, y, cache)
        timer.launch(following)
        timer.wait(y)
        y = following
    timer.finish(y)
    return Sample(len(y) * tokens, timer.clock() - start)


def generate(model: Any, ids: mx.array, tokens: int, timer: Timer) -> Sample:
    """Prompt ``ids [1, L]`` to last token through mlx-lm's generate_step, as ``generate`` runs it, greedily.

    Its last step, whose token nobody reads, is waited for, too. The first token is stamped as generate_step hands it
    over: its value is there, and the second is under way.
    """
    cache = make_prompt_cache(model)
    start, first = timer.clock(), None
    for _ in _steps(model, ids, tokens, cache):
        if first is None:
            first = timer.glance() - start
    timer.finish([c.state for c in cache])
    return Sample(tokens, timer.clock() - start, first)


def _steps(model: Any, ids: mx.array, tokens: int, cache: list) -> Iterator[Any]:
    return generate_step(ids[0], model, max_tokens=tokens, prompt_cache=cache, prefill_step_size=CHUNK)


def next_token(model: Any, ids: mx.array, cache: list) -> mx.array:
    """The likeliest token behind each row of ``ids [B, L]``, ``[B, 1]``; lazy."""
    return mx.argmax(model(ids, cache=cache)[:, -1], axis=-1, keepdims=True)


@dataclass(frozen=True)
class Trial:
    """One thing to measure: ``prefill`` of a prompt, ``decode`` behind ``depth`` positions, or both by ``generate``."""

    kind: str
    prompt: int
    generated: int
    depth: int
    batch: int

    def run(self, model: Any, vocabulary: int, timer: Timer) -> Sample:
        """Measure it once, from a fresh cache; the positions before are filled in before the clock starts."""
        if self.kind == "generate":
            return generate(model, prompt_ids(self.batch, self.prompt, vocabulary), self.generated, timer)
        ids, cache = self.start(model, vocabulary, timer)
        if self.kind == "prefill":
            return prefill(model, ids, cache, timer)
        return decode(model, ids, cache, self.generated, timer)

    @property
    def first_chunk(self) -> Trial:
        """A prompt no longer than what is passed to a model at once, from an empty cache."""
        return replace(self, prompt=min(self.prompt, CHUNK), depth=0)

    def start(self, model: Any, vocabulary: int, timer: Timer) -> tuple[mx.array, list]:
        """The tokens that are timed, ``[batch, prompt or 1]``, and a cache that holds ``depth`` others."""
        ids = prompt_ids(self.batch, self.depth + max(self.prompt, 1), vocabulary)
        return ids[:, self.depth :], filled_cache(model, ids[:, : self.depth], timer)

    def __str__(self) -> str:
        sizes = {"prompt": self.prompt, "generated": self.generated, "depth": self.depth}
        said = [f"{name} {value}" for name, value in sizes.items() if value]
        return f"{self.kind} {', '.join(said + ([f'batch {self.batch}'] if self.batch > 1 else []))}"


def prompt_ids(batch: int, length: int, vocabulary: int) -> mx.array:
    """Arbitrary tokens ``[batch, length]``, the same in every run."""
    ids = mx.random.randint(0, vocabulary, (batch, length), key=mx.random.key(1))
    mx.eval(ids)
    return ids


def trials(prompts: list[int], generated: list[int], depths: list[int], batches: list[int]) -> list[Trial]:
    """Prefill and decode at every depth and batch, then prompts and tokens together, alone and from an empty cache.

    A prompt or a number of tokens of 0 leaves that part out, as in llama-bench.
    """
    apart = [(d, b) for d in depths for b in batches]
    found = [Trial("prefill", p, 0, d, b) for p in prompts if p for d, b in apart]
    found += [Trial("decode", 0, g, d, b) for g in generated if g for d, b in apart]
    if 0 in depths and 1 in batches:
        found += [Trial("generate", p, g, 0, 1) for p in prompts if p for g in generated if g]
    return found
