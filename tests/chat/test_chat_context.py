"""A context that is full: what goes, what is said, what is refused."""

import pytest
from chat_fakes import FakeModel, fake_tokenizer

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.session import Session
from flashnorm_mlx.errors import FlashNormError


def start(limit: int | None, answer=lambda text: "ok", **settings) -> tuple[Session, FakeModel, list[str]]:
    notices: list[str] = []
    model = FakeModel(answer, limit=limit)
    return Session(model, fake_tokenizer(), Settings(temp=0, **settings), notices.append), model, notices


def test_the_oldest_exchanges_go_and_the_system_prompt_stays():
    seen: list[str] = []
    session, _, notices = start(100, lambda text: seen.append(text) or "ok", system="SYS")
    for number in range(7):
        "".join(session.send(f"{number}" * 10))
        last = session.answers[-1]
        assert last.prompt + last.generated <= 100
        assert seen[-1].startswith("<system>SYS<end><user>") and f"{number}" * 10 in seen[-1]
    assert notices == ["The context of 100 tokens is full: the oldest 3 exchanges are no longer shown to the model."]
    assert "2222" not in seen[-1] and "3333" in seen[-1]
    assert len(session.messages) == 14  # all of it can still be saved
    assert session.answers[-1].reused > 40  # room was made for several turns, not just for one


def test_fewer_than_needed_never_go():
    session, _, notices = start(64)
    for text in ("a" * 20, "b" * 8, "c" * 15):
        "".join(session.send(text))
    assert session.forgotten == 2 and "oldest exchange is" in notices[0]


def test_one_message_that_is_too_long_is_refused_with_its_numbers():
    session, model, notices = start(64, system="SYS")
    "".join(session.send("hi"))
    before, fed = list(session.messages), model.tokens
    with pytest.raises(FlashNormError, match=r"has 108 tokens.* 56 fit into a context of 64"):
        list(session.send("x" * 100))
    assert session.messages == before and model.tokens == fed and not notices and session.forgotten == 0
    assert "".join(session.send("yo")) == "ok"


def test_an_answer_is_cut_where_the_context_ends():
    session, model, _ = start(64, lambda text: "z" * 200)
    assert "".join(session.send("hello")) == "z" * (64 - 8)
    assert session.answers[-1].finish == "context"
    assert model.tokens == 64
    assert "".join(session.send("again"))  # the full context is cleared away by itself


def test_the_setting_takes_the_place_of_the_models_limit():
    session, _, _ = start(1000, max_context=40)
    with pytest.raises(FlashNormError, match="35 fit into a context of 40"):
        list(session.send("x" * 50))
    assert start(1000)[0].limit == 1000
    assert start(None)[0].limit is None


def test_a_raised_limit_brings_the_oldest_back():
    seen: list[str] = []
    session, _, notices = start(64, lambda text: seen.append(text) or "ok")
    for text in ("a" * 20, "b" * 20, "c" * 20):
        "".join(session.send(text))
    assert "aaa" not in seen[-1] and notices
    session.settings = Settings(temp=0, max_context=500)
    "".join(session.send("d"))
    assert "aaa" in seen[-1] and len(notices) == 1


def test_a_model_without_arguments_has_no_limit():
    model = FakeModel()
    del model.args
    session = Session(model, fake_tokenizer(), Settings(temp=0))
    assert session.limit is None and "".join(session.send("a")) == "aa#1"
