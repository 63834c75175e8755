"""A conversation with a model: what was said, what the cache holds, what fits the context. No terminal in it."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from ..errors import FlashNormError
from .prefix import PrefixCache
from .prompt import Message, Prompter
from .settings import Settings
from .statistics import Statistics

PREFILL_STEP = 512
"""Prompt tokens between two looks at whether to stop: small enough to stop soon, large enough to lose no speed."""

Progress = Callable[[int, int], None]


class _Stopped(Exception):
    """Leaves a prefill between two of its steps."""


class Session:
    """One conversation. `send` and `regenerate` answer; all else is state that can be read between answers.

    The messages and the cache change together: an answer that is stopped is kept as far as it came, and one that is
    stopped or fails before its first text leaves the conversation as it was. Messages that no longer fit the context
    stay in `messages`, but the first `forgotten` of them are not shown to the model. `raw` leaves the chat template
    aside, and has the model continue plain text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: Settings,
        notice: Callable[[str], None] = lambda line: None,
        *,
        raw: bool = False,
    ) -> None:
        self.settings = settings
        self.messages: list[Message] = []
        self.forgotten = 0
        self.answers: list[Statistics] = []
        self._model, self._tokenizer, self._notice = model, tokenizer, notice
        self._prompter = Prompter(tokenizer, raw=raw)
        self._held = PrefixCache(model)
        self._fitted_to: int | None = None
        self._stop = False
        self.seed()

    @property
    def templated(self) -> bool:
        """Whether the model has a chat template; without one it continues plain text."""
        return self._prompter.templated

    @property
    def limit(self) -> int | None:
        """The context in tokens: the setting, or else the model's own; None where neither says."""
        args = getattr(self._model, "args", None)
        return self.settings.max_context or getattr(args, "max_position_embeddings", None)

    def seed(self) -> None:
        """Start the random numbers afresh where a seed is set."""
        if self.settings.seed is not None:
            mx.random.seed(self.settings.seed)

    def restart(self, messages: list[Message] | None = None) -> None:
        """Forget the conversation, or take up another one. What the cache has in common with it stays of use."""
        self.messages, self.forgotten = list(messages or []), 0

    def stop(self) -> None:
        """End the answer that is being given at its next token; safe to call from a signal handler."""
        self._stop = True

    def send(self, text: str, progress: Progress = lambda done, total: None) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece; what it took is then in `answers[-1]`.

        Raises FlashNormError, with nothing changed, where the message can't be sent.
        """
        if not text.strip():
            raise FlashNormError("The message is empty: write something to answer.")
        yield from self._answer([*self.messages, {"role": "user", "content": text}], progress)

    def regenerate(self, progress: Progress = lambda done, total: None) -> Iterator[str]:
        """Answer the last message once more, in place of the answer it had."""
        if not self.messages:
            raise FlashNormError("There is no answer yet to give again: send a message first.")
        yield from self._answer(self.messages[:-1], progress)

    def _answer(self, messages: list[Message], progress: Progress) -> Iterator[str]:
        try:
            yield from self._run(messages, progress)
        finally:
            self._stop = False

    def _run(self, messages: list[Message], progress: Progress) -> Iterator[str]:
        start = time.perf_counter()
        ids = self._fit(messages)
        reused = self._held.reuse(ids)
        longest, cut = self._longest(len(ids))
        ends = {"stop": "stop", "length": cut}
        generated: list[int] = []
        text, finish = "", "interrupted"
        mx.reset_peak_memory()
        stream = self._stream(ids, reused, longest, progress)
        began = first = last = time.perf_counter()
        try:
            for response in stream:
                last = time.perf_counter()
                if not generated:
                    first, self._held.ids = last, list(ids)
                # mlx-lm feeds a token before it hands it out, so the cache holds all that was handed out.
                self._held.ids.append(response.token)
                generated.append(response.token)
                text += response.text
                finish = ends.get(response.finish_reason, "interrupted")
                if response.text:
                    yield response.text
                if self._stop:
                    break
        except (_Stopped, GeneratorExit):
            pass  # both between two steps, where the cache is whole
        except BaseException:
            self._held.drop()
            raise
        finally:
            stream.close()
            kept = bool(text) or finish != "interrupted"
            if kept:
                if not self.templated:
                    text = self._prompter.continuation(ids, generated[:-1] if finish == "stop" else generated)
                self.messages = [*messages, {"role": "assistant", "content": text}]
            self.answers.append(
                Statistics(
                    finish=finish,
                    kept=kept,
                    prompt=len(ids),
                    reused=reused,
                    generated=len(generated),
                    first_token=first - start,
                    prefill_seconds=first - began,
                    decode_seconds=last - first,
                    peak_memory=mx.get_peak_memory(),
                    limit=self.limit,
                )
            )

    def _stream(self, ids: list[int], reused: int, longest: int, progress: Progress) -> Generator[Any, None, None]:
        def step(done: int, total: int) -> None:
            progress(done, total)
            # At the last call the first token is on its way into the cache too: too late to stop here.
            if done < total:
                self._held.ids = ids[: reused + done]
                if self._stop:
                    raise _Stopped

        return stream_generate(
            self._model,
            self._tokenizer,
            ids[reused:],
            max_tokens=longest,
            sampler=self._sample,
            logits_processors=self._processors(),
            prompt_cache=self._held.cache,
            prefill_step_size=PREFILL_STEP,
            prompt_progress_callback=step,
        )

    def _longest(self, prompt: int) -> tuple[int, str]:
        """How long the answer may get, and what it is that cuts it there."""
        chosen, limit = self.settings.max_tokens, self.limit
        if limit is None or chosen <= limit - prompt:
            return chosen, "max_tokens"
        return limit - prompt, "context"

    def _fit(self, messages: list[Message]) -> list[int]:
        """The ids of the conversation, less its oldest exchanges where it leaves no room to answer.

        What is dropped frees half the context, so that the next turns find their prefix in the cache again.
        """
        limit, last = self.limit, len(messages) - 1
        if limit != self._fitted_to:
            self.forgotten, self._fitted_to = 0, limit
        ids = self._ids(messages, self.forgotten)
        if limit is None:
            return ids
        room = limit - min(self.settings.max_tokens, max(1, limit // 8))
        if len(ids) <= room:
            return ids
        starts = range(self.forgotten, last, 2)
        kept = bisect_left(starts, True, key=lambda start: len(self._ids(messages, start)) <= limit // 2)
        start = starts[kept] if kept < len(starts) else last
        ids = self._ids(messages, start)
        if len(ids) > room:
            raise FlashNormError(
                f"This message has {len(ids)} tokens, system prompt included, and {room} fit into a context of {limit} "
                "with room to answer: it was not sent. Shorten it."
            )
        dropped, self.forgotten = (start - self.forgotten) // 2, start
        exchanges = "exchange is" if dropped == 1 else f"{dropped} exchanges are"
        self._notice(f"The context of {limit} tokens is full: the oldest {exchanges} no longer shown to the model.")
        return ids

    def _ids(self, messages: list[Message], start: int) -> list[int]:
        return self._prompter.ids(self.settings.system, messages[start:])

    def _sample(self, logprobs: mx.array) -> mx.array:
        chosen = self.settings
        top_k = chosen.top_k if chosen.top_k < logprobs.shape[-1] else 0  # mlx-lm refuses one beyond the vocabulary
        return make_sampler(chosen.temp, top_p=chosen.top_p, min_p=chosen.min_p, top_k=top_k)(logprobs)

    def _processors(self) -> list[Any]:
        penalty = self.settings.repetition_penalty
        return make_logits_processors(repetition_penalty=None if penalty == 1 else penalty)
