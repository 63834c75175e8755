"""From messages to token ids: the model's chat template, and what to do where it has none or is narrow."""

from __future__ import annotations

from typing import Any

from ..errors import FlashNormError, first_line

Message = dict[str, str]
"""A `role` (user or assistant) and its `content`."""


class Prompter:
    """Renders a conversation as the model was trained to read it.

    A template that refuses or ignores a system prompt gets it at the head of the first user message. A model
    without a template (`templated` is False) gets the plain text to continue.
    """

    def __init__(self, tokenizer: Any, *, raw: bool = False) -> None:
        self._tokenizer = tokenizer
        self._system_role: bool | None = None
        self.templated = not raw and bool(getattr(tokenizer, "has_chat_template", False))

    def ids(self, system: str | None, messages: list[Message]) -> list[int]:
        """The ids of the whole conversation, ready for the assistant to speak."""
        system = system and _whole(system)
        messages = [{**message, "content": _whole(message["content"])} for message in messages]
        if not self.templated:
            return self._plain(system, messages)
        if not system:
            return self._apply(messages)
        if self._system_role is None:
            self._system_role = self._takes_system()
        if self._system_role:
            return self._apply([{"role": "system", "content": system}, *messages])
        first = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
        return self._apply([first, *messages[1:]])

    def continuation(self, prompt: list[int], generated: list[int]) -> str:
        """The text that `generated` adds to `prompt`; a detokenizer that starts afresh loses its leading space."""
        return self._tokenizer.decode(prompt + generated)[len(self._tokenizer.decode(prompt)) :]

    def _plain(self, system: str | None, messages: list[Message]) -> list[int]:
        # An answer continues its message directly; the next message starts a new line.
        parts = [system, "\n"] if system else []
        for message in messages:
            parts += [message["content"], "\n" if message["role"] == "assistant" else ""]
        return list(self._tokenizer.encode("".join(parts)))

    def _takes_system(self) -> bool:
        user = [{"role": "user", "content": "a"}]
        try:
            return self._apply([{"role": "system", "content": "b"}, *user]) != self._apply(user)
        except FlashNormError:
            return False

    def _apply(self, messages: list[Message]) -> list[int]:
        try:
            ids = list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        except Exception as error:  # a template is a program from the checkpoint: it may raise anything
            said = f"The model's chat template refuses this conversation: {first_line(error)}."
            raise FlashNormError(said) from error
        if not ids:
            raise FlashNormError("The model's chat template makes nothing of this conversation.")
        return ids


def _whole(text: str) -> str:
    # Terminals, command lines and JSON may hand over halves of characters, which tokenizers don't take.
    return text.encode("utf-8", "replace").decode("utf-8")
