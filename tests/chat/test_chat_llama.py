"""A small Llama with random weights: answers from a kept cache are those from scratch."""

import mlx.core as mx
import pytest
from chat_fakes import CHARACTERS, SPECIAL, fake_tokenizer
from mlx_lm.models import llama
from mlx_lm.models.cache import RotatingKVCache

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.session import Session


@pytest.fixture(scope="module")
def model():
    mx.random.seed(3)
    arguments = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(SPECIAL) + len(CHARACTERS),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    model = llama.Model(llama.ModelArgs.from_dict(arguments))
    model.update({"lm_head": {"weight": model.lm_head.weight * 30}})  # answers that vary
    mx.eval(model.parameters())
    return model


def talk(model) -> Session:
    return Session(model, fake_tokenizer(), Settings(temp=0, max_tokens=24, system="You are small."))


def afresh(model, session: Session, number: int) -> str:
    """Answer `number` of the conversation, by a session that holds nothing."""
    other = talk(model)
    other.restart(session.messages[: 2 * number])
    return "".join(other.send(session.messages[2 * number]["content"]))


def test_turns_with_a_kept_cache_answer_as_from_scratch(model):
    session = talk(model)
    answers = ["".join(session.send(question)) for question in ("Hello there", "And then? What else", "0123")]
    assert len(set("".join(answers))) > 8
    assert [a.reused > 0 for a in session.answers] == [False, True, True]
    assert answers == [afresh(model, session, number) for number in range(3)]


def test_so_does_one_after_an_answer_that_was_stopped_or_given_again(model):
    session = talk(model)
    stopped = session.send("Hello there")
    next(stopped), next(stopped)
    session.stop()
    list(stopped)
    answer = "".join(session.send("And then?"))
    assert answer == afresh(model, session, 1)
    assert "".join(session.regenerate()) == answer
    assert session.answers[-1].reused > 0


def test_and_with_a_window_that_wraps(model, monkeypatch):
    def windows(self) -> list:
        return [RotatingKVCache(max_size=48) for _ in self.layers]

    monkeypatch.setattr(llama.Model, "make_cache", windows)
    session = talk(model)
    for question in ("Hello", "there, how are you today?", "abc", "def"):
        "".join(session.send(question))
    list(session.regenerate())
    assert session.answers[-1].reused == 0
    messages = session.messages
    assert messages[-1]["content"] == afresh(model, session, 3)
