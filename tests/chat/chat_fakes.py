"""A tokenizer of single characters and a model that looks up what to say: the chat's logic without weights."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
CHARACTERS = [*string.printable[:95], "\n", "\t", "\x1b", "\x9b", "é"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
DEAF = (
    "{% for m in messages if m.role != 'system' %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def fake_tokenizer(template: str | None = TEMPLATE) -> TokenizerWrapper:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = template
    return TokenizerWrapper(fast, eos_token_ids=[1])


def split(text: str) -> tuple[str, str, str]:
    """What stands before the last user's words, those words, and what is answered so far."""
    head, _, turn = text.rpartition("<user>")
    said, _, answer = turn.partition("<end><assistant>")
    return head, said, answer


def echo(text: str) -> str:
    """The whole answer to a conversation: its last message, doubled, and how many there were."""
    head, said, _ = split(text)
    return f"{said}{said}#{head.count('<user>') + 1}"


class Window(KVCache):
    """A cache that can't be cut back."""

    def is_trimmable(self) -> bool:
        return False

    def trim(self, n: int) -> int:
        raise AssertionError("a cache that can't be cut back was cut back")


class FakeModel:
    """Says `answer(conversation)`, and nothing but what its cache and its input make a conversation.

    The cache holds the ids themselves as keys, so a wrong reuse of it gives a wrong answer. `fed` lists the ids of
    every call.
    """

    def __init__(
        self, answer: Callable[[str], str] = echo, *, limit: int | None = None, cache: type = KVCache, pause: float = 0
    ) -> None:
        self.args = SimpleNamespace(max_position_embeddings=limit)
        self.layers = [None, None]
        self.fed: list[list[int]] = []
        self.before: Callable[[], None] = lambda: None
        self._answer, self._cache, self._pause = answer, cache, pause
        self._names = [*SPECIAL, *CHARACTERS]

    def make_cache(self) -> list[Any]:
        return [self._cache() for _ in self.layers]

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        self.before()
        time.sleep(self._pause)
        self.fed.append(ids[0].tolist())
        keys = ids[:, None, :, None].astype(mx.float32)
        held = [layer.update_and_fetch(keys, keys)[0][0, 0, :, 0] for layer in cache]
        assert mx.array_equal(held[0], held[1])
        text = "".join(self._names[int(number)] for number in held[0].tolist())
        told = split(text)[2] if "<user>" in text else ""
        answer = self._answer(text)
        rest = answer[len(told) :] if answer.startswith(told) else ""
        token = self._names.index(rest[0]) if rest else 1
        return mx.where(mx.arange(len(self._names)) == token, 10.0, 0.0)[None, None] * mx.ones((1, ids.shape[1], 1))

    @property
    def tokens(self) -> int:
        """How many ids it has been fed so far."""
        return sum(map(len, self.fed))
