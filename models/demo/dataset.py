"""Conversations as rows of token ids, each token marked with who says it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import vocabulary
from corpus import Conversation, heldout, key, training

LENGTH = 1024
NOBODY, USER, ASSISTANT = 0, 1, 2  # padding and starts; the system's and user's words; the assistant's
CHUNK = 2000  # conversations a job
OPEN_ROWS = 24  # rows that are still being filled

Marked = tuple[list[int], list[int]]  # token ids, and for each the speaker
Rows = tuple[np.ndarray, np.ndarray]  # ids[n, LENGTH + 1] uint16, speakers[n, LENGTH + 1] uint8


def encode(processor: Any, messages: Conversation, limit: int = LENGTH) -> Marked:
    """Ids as the chat template has them, cut after the last whole answer that fits. Role tokens count as the user's words:
    the assistant's own are those from behind its role token to <|end|>."""
    ids, speakers = [vocabulary.BOS], [NOBODY]
    whole = 0
    for message in messages:
        words = processor.encode(message["content"])
        speaker = ASSISTANT if message["role"] == "assistant" else USER
        ids += [vocabulary.ROLE_IDS[message["role"]], *words, vocabulary.END]
        speakers += [USER] + [speaker] * (len(words) + 1)
        if len(ids) > limit:
            break
        if speaker == ASSISTANT:
            whole = len(ids)
    return ids[:whole], speakers[:whole]


def pack(conversations: Iterable[Marked]) -> Rows:
    """Lay conversations end to end into rows of LENGTH + 1, none of them split; the rest of a row is padding."""
    done: list[Marked] = []
    rows: list[Marked] = []
    for ids, speakers in conversations:
        row = next((row for row in rows if len(row[0]) + len(ids) <= LENGTH + 1), None)
        if row is None:
            if len(rows) == OPEN_ROWS:
                rows.sort(key=lambda filled: -len(filled[0]))
                done.append(rows.pop(0))
            row = ([], [])
            rows.append(row)
        row[0].extend(ids)
        row[1].extend(speakers)
    done += rows
    tokens = np.full((len(done), LENGTH + 1), vocabulary.PAD, np.uint16)
    marks = np.full((len(done), LENGTH + 1), NOBODY, np.uint8)
    for at, (ids, speakers) in enumerate(done):
        tokens[at, : len(ids)], marks[at, : len(ids)] = ids, speakers
    return tokens, marks


def _chunk(start: int, seed: int, stop: int, tokenizer: Path, excluded: frozenset[str]) -> Rows:
    processor = vocabulary.load(tokenizer)
    return pack(encode(processor, talk) for talk in training(seed, start, min(start + CHUNK, stop), excluded))


def build(seed: int, count: int, tokenizer: Path) -> Rows:
    """The rows of `count` training conversations, made by all processors."""
    excluded = frozenset(map(key, heldout()))
    job = partial(_chunk, seed=seed, stop=count, tokenizer=tokenizer, excluded=excluded)
    with multiprocessing.Pool(min(os.cpu_count() or 1, -(-count // CHUNK))) as pool:
        parts = list(pool.imap(job, range(0, count, CHUNK)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def heldout_rows(tokenizer: Path) -> Rows:
    processor = vocabulary.load(tokenizer)
    return pack(encode(processor, talk) for talk in heldout())


def vocabulary_texts(seed: int, count: int) -> Iterable[str]:
    """What the tokenizer is trained on: the contents of the first `count` conversations."""
    for talk in training(seed, 0, count, frozenset()):
        for message in talk:
            yield message["content"]
