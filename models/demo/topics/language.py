"""The tools every topic is written with: a portable random source, phrase patterns and careless typing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

T = TypeVar("T")

CHOICE = re.compile(r"\[([^\[\]]*)\]")  # an innermost [this|or that]
WORD = re.compile(r"[a-z]{5,}")
OPENERS = (
    "Hey, ", "Hi, ", "So, ", "Okay, ", "Please tell me: ", "Quick question: ", "Tell me, ", "By the way, ", "Now, ",
    "I wonder, ", "And ", "Can you tell me: ", "One more question: ", "Good. ", "Thanks! ", "Oh, ", "Well, ",
)
FIXED_CASE = ("I ", "I'", "FlashNorm", "RMS", "MLX", "QK", "SmolLM2", "Llama", "GPU", "CPU", "CUDA", "Metal")


class Dice:
    """Random choices built on `random.random()` alone, whose sequence Python promises to keep for a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number, low <= n <= high."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def weighted(self, items: Sequence[tuple[int, T]]) -> T:
        """One of the (weight, item) pairs' items, by weight."""
        at = self._random() * sum(weight for weight, _ in items)
        for weight, item in items:
            at -= weight
            if at < 0:
                return item
        return items[-1][1]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items, in random order."""
        pool = list(items)
        return [pool.pop(int(self._random() * len(pool))) for _ in range(count)]


class Turn(NamedTuple):
    """One question and its answer; `brief` is what a conversation that asks for short answers gets."""

    question: str
    answer: str
    brief: str = ""


@dataclass
class Talk:
    """What a conversation has established: the assistant's name, what the user said of themselves, the last result."""

    me: str = "Pip"
    style: str = "plain"
    pet: str = "pet"
    facts: dict[str, str] = field(default_factory=dict)


class Item(NamedTuple):
    """A fact with the ways to ask for it. `more` answers "Tell me more." right after it."""

    patterns: tuple[str, ...]
    answer: str
    brief: str
    more: str = ""


MORE = (
    "Tell me more.", "[Can|Could] you [say|tell me] more[| about that| about it]?", "Go on.", "Why is that?", "Why?",
    "Please [explain|go on|continue].", "[Can|Could] you explain [that|it|this][| a bit more| further| in more detail]?",
    "More, please.", "I want to know more[| about that].", "[Interesting|Okay]. [Tell me more.|Go on.|What else?]",
)


def expand(dice: Dice, pattern: str) -> str:
    """Resolve every [a|b|c] in the pattern, innermost first."""
    while "[" in pattern:
        pattern = CHOICE.sub(lambda found: dice.pick(found.group(1).split("|")), pattern)
    return pattern


def define(term: str) -> tuple[str, ...]:
    """The many ways to ask what a term means."""
    return (
        f"What is {term}?", f"What is {term}?", f"What's {term}?", f"[Can|Could] you [explain|describe] {term}?",
        f"[Explain|Describe] {term}[| to me| in simple words].", f"Tell me [about|something about|what you know about] {term}.",
        f"What do you know about {term}?", f"I [want|would like] to know what {term} is.", f"Do you know what {term} is?",
        f"[Can|Could] you tell me [about|what] {term}[| is| means]?", f"{term}?", f"What does {term} mean?",
        f"What [exactly |]is {term}?", f"How would you [explain|describe] {term}?",
    )


def _typo(dice: Dice, text: str) -> str:
    """Swap two letters inside one long lower-case word."""
    words = [found for found in WORD.finditer(text) if text[found.start() - 1: found.start()] not in ("{", "`", "_")]
    if not words:
        return text
    word = dice.pick(words)
    at = dice.number(word.start() + 1, word.end() - 3)
    return text[:at] + text[at + 1] + text[at] + text[at + 2:]


def careless(dice: Dice, text: str) -> str:
    """Now and then what people do when they type: openers, no capitals, no full stop, a please, a typo."""
    if dice.chance(0.1):
        opener = dice.pick(OPENERS)
        text = opener + (text if text.startswith(FIXED_CASE) else text[:1].lower() + text[1:])
    if dice.chance(0.05) and text.endswith("?"):
        text = text[:-1] + ", please?"
    if dice.chance(0.04):
        text = _typo(dice, text)
    if dice.chance(0.15):
        text = text.lower()
    if dice.chance(0.15) and len(text) > 1:
        text = text.rstrip("?.! ")
    return text


def ask(dice: Dice, patterns: Sequence[str], **slots: object) -> str:
    """A question from one of the patterns, typed carelessly; what fills the slots keeps its spelling."""
    text = careless(dice, expand(dice, dice.pick(patterns)))
    return text.format(**slots) if slots else text


def discuss(dice: Dice, items: Sequence[Item]) -> list[Turn]:
    """Ask for one of the items, and sometimes for more about it."""
    item = dice.pick(items)
    turns = [Turn(ask(dice, item.patterns), item.answer, item.brief)]
    if dice.chance(0.35 if item.more else 0.05):
        turns.append(Turn(ask(dice, MORE), item.more or "That is all I know about it."))
    return turns


def a(noun: str) -> str:
    """The noun with its article: a fox, an owl."""
    return ("an " if noun[0] in "aeio" else "a ") + noun
