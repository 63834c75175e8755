"""What can be set for a conversation: one table says type, range and meaning, for `/set`, files and callers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import FlashNormError

_MANY = 10**6
_WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True)
class Rule:
    """Type and range of one setting; `optional` admits None, written `off`."""

    kind: type
    help: str
    low: float = 0
    high: float = 0
    optional: bool = False

    @property
    def range(self) -> str:
        """The values that are taken, in words."""
        form = "g" if self.kind is float else ","
        numbers = f"{self.low:{form}} to {self.high:{form}}"
        words = {bool: "on or off", str: "text"}.get(self.kind, numbers)
        return f"{words}, or off" if self.optional else words

    def parse(self, text: str) -> Any:
        """The value that a user wrote; ValueError where it is none of this type."""
        word = text.strip().lower()
        if self.optional and word in ("off", "none"):
            return None
        if self.kind is bool:
            if word not in _WORDS:
                raise ValueError(text)
            return _WORDS[word]
        return self.kind(text.strip())

    def accepts(self, value: Any) -> bool:
        """Whether `value` has this type and lies in range; True and False are no numbers here."""
        if value is None:
            return self.optional
        if self.kind in (bool, str):
            return isinstance(value, self.kind)
        kinds = (int, float) if self.kind is float else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return bool(self.low <= value <= self.high)  # which no NaN does


RULES = {
    "system": Rule(str, "the system prompt", optional=True),
    "max_tokens": Rule(int, "longest answer, in tokens", 1, _MANY),
    "temp": Rule(float, "temperature; 0 takes the likeliest token", 0, 5),
    "top_p": Rule(float, "share of the probability to sample from; 1 is all", 0, 1),
    "top_k": Rule(int, "number of tokens to sample from; 0 is all", 0, _MANY),
    "min_p": Rule(float, "least probability, relative to the likeliest token", 0, 1),
    "repetition_penalty": Rule(float, "above 1 discourages repetition", 0.1, 10),
    "seed": Rule(int, "makes the answers repeatable", 0, 2**32 - 1, optional=True),
    "markdown": Rule(bool, "render the answers as markdown"),
    "stats": Rule(bool, "show speed and memory after each answer"),
    "max_context": Rule(int, "context limit in tokens; off is the model's own", 16, 10**8, optional=True),
}


@dataclass(frozen=True)
class Settings:
    """How to answer and how to show it. A value of the wrong type or out of range raises FlashNormError."""

    system: str | None = None
    max_tokens: int = 1024
    temp: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    markdown: bool = False
    stats: bool = False
    max_context: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, rule = getattr(self, field.name), RULES[field.name]
            if not rule.accepts(value):
                raise FlashNormError(f"{field.name} takes {rule.range}, not {value!r:.60}.")


def parse(name: str, text: str) -> Any:
    """The value that `text` stands for in the setting `name`; FlashNormError says what is taken instead."""
    rule = RULES[name]
    try:
        value = rule.parse(text)
    except ValueError:
        value = text
    if (value is text and rule.kind is not str) or not rule.accepts(value):
        raise FlashNormError(f"{name} takes {rule.range}, not {text!r:.60}.")
    return value


def shown(value: Any) -> str:
    """A setting's value as a user would write it."""
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
