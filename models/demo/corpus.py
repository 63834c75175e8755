"""The demo corpus: conversations in plain English from a closed world, the same bytes for the same seed.

A conversation is a list of chat messages, `{"role": "system" | "user" | "assistant", "content": ...}`. Number `index`
of seed `seed` depends on nothing else, so any part of the corpus can be made in any order and by any number of processes.

    python models/demo/corpus.py --show 3              print three conversations
    python models/demo/corpus.py --heldout FILE        write the held-out text
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from topics.arithmetic import arithmetic
from topics.facts import facts
from topics.flashnorm import flashnorm
from topics.language import Dice, Talk, Turn
from topics.memory import memory
from topics.refusal import refusal
from topics.smalltalk import greeting, parting, smalltalk
from topics.story import rhyme, story
from topics.style import styled, system_prompt
from topics.tool import tool
from topics.units import units
from topics.words import words

Message = dict[str, str]
Conversation = list[Message]
Topic = Callable[[Dice, Talk], list[Turn]]

HELDOUT_SEED = 20_240_709
HELDOUT_BYTES = 80_000
LONGEST = 3000  # characters; with the role tokens they make about 1024 tokens
TOPICS: list[tuple[int, Topic]] = [
    (15, flashnorm), (13, tool), (14, smalltalk), (9, facts), (8, units), (14, refusal), (8, memory), (7, story), (1, rhyme), (5, words),
]
ARITHMETIC = 18  # its weight beside TOPICS; it alone is told whether its text is held out


def _turns(dice: Dice, talk: Talk, held_out: bool) -> Iterator[Turn]:
    """One topic after the other: a greeting now and then first, a goodbye now and then last."""
    length = dice.weighted([(30, 1), (35, dice.number(2, 5)), (20, dice.number(6, 12)), (15, 99)])
    if dice.chance(0.25):
        yield from greeting(dice, talk)
    choices: list[tuple[int, Topic | None]] = [(ARITHMETIC, None), *TOPICS]
    for _ in range(length):
        topic = dice.weighted(choices)
        yield from topic(dice, talk) if topic else arithmetic(dice, talk, held_out)
    if length > 1 and dice.chance(0.3):
        yield from parting(dice, talk)


def conversation(seed: int, index: int, held_out: bool = False) -> Conversation:
    """Conversation number `index` of the corpus with this seed, at most LONGEST characters of content."""
    dice = Dice(f"{seed}/{index}")
    talk = Talk()
    messages: Conversation = []
    if dice.chance(0.25):
        messages.append({"role": "system", "content": system_prompt(dice, talk)})
    size = 0
    for turn in _turns(dice, talk, held_out):
        answer = styled(dice, talk.style, turn)
        size += len(turn.question) + len(answer)
        if size > LONGEST:
            break
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
    return messages


def key(messages: Conversation) -> str:
    """What two conversations share if and only if they are the same."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def heldout(size: int = HELDOUT_BYTES) -> list[Conversation]:
    """The held-out conversations: a seed of their own, no two the same, with the arithmetic kept from training."""
    found: dict[str, Conversation] = {}
    index = total = 0
    while total < size:
        messages = conversation(HELDOUT_SEED, index, held_out=True)
        index += 1
        if key(messages) not in found:
            found[key(messages)] = messages
            total += len(json.dumps({"messages": messages})) + 1
    return list(found.values())


def training(seed: int, start: int, stop: int, excluded: frozenset[str]) -> Iterator[Conversation]:
    """Conversations start … stop - 1 of a training seed, without the excluded ones (by `key`)."""
    if seed == HELDOUT_SEED:
        raise ValueError(f"seed {seed} is the held-out text's")
    for index in range(start, stop):
        messages = conversation(seed, index)
        if key(messages) not in excluded:
            yield messages


def write_heldout(path: Path) -> None:
    """One conversation a line, as {"messages": [...]}."""
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in heldout())
    path.write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N conversations")
    parser.add_argument("--heldout", type=Path, metavar="FILE", help="write the held-out text")
    args = parser.parse_args()
    for index in range(args.show):
        for message in conversation(args.seed, index):
            print(f"{message['role']:>9}: {message['content']}")
        print()
    if args.heldout:
        write_heldout(args.heldout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
