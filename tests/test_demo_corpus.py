"""The demo model's corpus and shipped files: determinism, right sums, a clean held-out text, gains that are not 1."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import mlx.core as mx
import pytest

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "heldout.jsonl",
    "training.json",
    "measured.json",
    "corpus.py",
    "train.py",
    "measure.py",
)
EQUATION = re.compile(r"(?<![\w.*/])(-?\d+) ([-+*/]) (\d+) = (-?\d+)(?![\d.]*\d)")


@pytest.fixture(scope="module")
def corpus():
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module("corpus")
    sys.path.remove(str(DEMO))


@pytest.fixture(scope="module")
def heldout():
    lines = (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def test_same_seed_same_conversations(corpus):
    assert [corpus.conversation(3, i) for i in range(50)] == [corpus.conversation(3, i) for i in range(50)]
    assert corpus.conversation(3, 0) != corpus.conversation(4, 0)


def test_conversations_alternate(corpus):
    for index in range(300):
        messages = corpus.conversation(1, index)
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message["content"].strip() == message["content"] != "" for message in messages)
        assert not any(mark in message["content"] for message in messages for mark in "{}[]")


def test_sums_are_right(corpus):
    checked = 0
    for index in range(1500):
        for message in corpus.conversation(2, index):
            if message["role"] != "assistant":
                continue
            for x, sign, y, total in EQUATION.findall(message["content"]):
                assert {
                    "+": lambda a, b: a + b,
                    "-": lambda a, b: a - b,
                    "*": lambda a, b: a * b,
                    "/": lambda a, b: a / b,
                }[sign](int(x), int(y)) == int(total), message["content"]
                checked += 1
    assert checked > 500


def test_heldout_file_is_what_the_corpus_makes(corpus, heldout):
    assert heldout == corpus.heldout()


def test_heldout_is_not_in_training(corpus, heldout):
    """Training skips every held-out conversation, and its sums with larger numbers are none of the held-out ones'."""
    excluded = frozenset(map(corpus.key, heldout))
    assert len(excluded) == len(heldout)
    assert not any(corpus.key(talk) in excluded for talk in corpus.training(1, 0, 1500, excluded))
    with pytest.raises(ValueError, match="held-out"):
        next(corpus.training(corpus.HELDOUT_SEED, 0, 1, excluded))


def test_no_training_conversation_begins_like_a_heldout_one(corpus, heldout):
    """Beyond whole conversations: long ones share no opening of three exchanges with the held-out text."""
    openings = {corpus.key(talk[:6]) for talk in heldout if len(talk) >= 6}
    assert openings and not any(corpus.key(talk[:6]) in openings for talk in corpus.training(1, 0, 1500, frozenset()))


def test_every_file_is_there_and_small():
    assert [name for name in FILES if not (DEMO / name).is_file()] == []
    files = [path for path in DEMO.rglob("*") if path.is_file() and "cache" not in str(path.parent)]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_weights_are_bf16_with_gains_away_from_one():
    weights = mx.load(str(DEMO / "model.safetensors"))
    assert isinstance(weights, dict) and all(weight.dtype == mx.bfloat16 for weight in weights.values())
    for kind in ("input_layernorm", "post_attention_layernorm", "model.norm"):
        gains = mx.concatenate([w.astype(mx.float32) for name, w in weights.items() if kind in name])
        assert gains.std().item() > 0.05


def test_tokenizer_gives_the_text_back():
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, load

    tokenizer = load(DEMO)
    assert isinstance(tokenizer.detokenizer, SPMStreamingDetokenizer)
    for text in ("Hello!", "  two spaces ", " \n\nfold\tit ", "12 + 34 = 46.", "émoji 🦊", "a" * 30):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        detokenizer = tokenizer.detokenizer
        detokenizer.reset()
        for token in ids:
            detokenizer.add_token(token)
        detokenizer.finalize()
        assert detokenizer.text == text


def test_chat_template_gives_the_ids_of_the_training(corpus, heldout):
    from mlx_lm.tokenizer_utils import load

    sys.path.insert(0, str(DEMO))
    try:
        dataset, vocabulary = importlib.import_module("dataset"), importlib.import_module("vocabulary")
    finally:
        sys.path.remove(str(DEMO))
    tokenizer, processor = load(DEMO), vocabulary.load(DEMO / "tokenizer.model")
    for talk in heldout:
        ids = list(tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False))
        trained, _ = dataset.encode(processor, talk, limit=10**9)
        assert ids == trained
