"""Turns of a conversation: what the model is fed, what is kept, and what a stop leaves behind."""

import mlx.core as mx
import pytest
from chat_fakes import FakeModel, Window, fake_tokenizer

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.session import PREFILL_STEP, Session
from flashnorm_mlx.errors import FlashNormError


def start(model: FakeModel, template: str | None = None, **settings) -> Session:
    tokenizer = fake_tokenizer(template) if template else fake_tokenizer()
    return Session(model, tokenizer, Settings(temp=0, **settings))


def said(session: Session) -> list[str]:
    return [message["content"] for message in session.messages]


def test_only_what_is_new_is_fed():
    model = FakeModel()
    session = start(model, system="x" * 50)
    assert "".join(session.send("ab")) == "abab#1"
    first = session.answers[-1]
    assert first.prompt == len("<!<ab!<") + 50 and first.reused == 0
    assert model.tokens == first.prompt + first.generated
    model.fed.clear()
    assert "".join(session.send("cd")) == "cdcd#2"
    second = session.answers[-1]
    assert second.reused == first.prompt + first.generated  # system prompt, question, answer and its end
    assert second.prompt - second.reused == len("<cd!<")
    assert model.tokens == len("<cd!<") + second.generated
    assert said(session) == ["ab", "abab#1", "cd", "cdcd#2"]


def test_pieces_come_one_by_one():
    model = FakeModel()
    answer = start(model).send("abc")
    assert next(answer) == "a"
    assert len(model.fed) <= 3  # no more than the prompt and one token ahead


def test_regenerate_replaces_the_answer_and_feeds_one_token_of_the_prompt():
    texts = iter(["one", "two"])
    answer = ""
    model = FakeModel(lambda text: answer)
    session = start(model)
    answer = next(texts)
    assert "".join(session.send("q")) == "one"
    model.fed.clear()
    answer = next(texts)
    assert "".join(session.regenerate()) == "two"
    assert said(session) == ["q", "two"]
    assert len(model.fed[0]) == 1
    assert session.answers[-1].reused == session.answers[-1].prompt - 1


def test_nothing_to_regenerate_or_to_send():
    session = start(FakeModel())
    with pytest.raises(FlashNormError, match="no answer yet"):
        list(session.regenerate())
    with pytest.raises(FlashNormError, match="empty"):
        list(session.send(" \n"))
    assert session.messages == [] and session.answers == []


@pytest.mark.parametrize("way", ["stop", "close"])
def test_a_stopped_answer_is_kept_and_the_next_turn_goes_on(way):
    model = FakeModel()
    session = start(model)
    answer = session.send("abcdef")
    assert [next(answer), next(answer)] == ["a", "b"]
    if way == "stop":
        session.stop()
        assert list(answer) == []
    else:
        answer.close()
    assert said(session) == ["abcdef", "ab"]
    assert session.answers[-1].finish == "interrupted" and session.answers[-1].kept
    model.fed.clear()
    assert "".join(session.send("x")) == "xx#2"
    assert session.answers[-1].reused == len("<abcdef!<ab")
    assert model.tokens == len("!<x!<") + session.answers[-1].generated


def test_stopping_a_prefill_takes_the_message_back_and_keeps_what_was_read():
    model = FakeModel(lambda text: str(text.count("y")))
    session = start(model)
    long = "y" * (3 * PREFILL_STEP)

    def progress(done: int, total: int) -> None:
        if done >= PREFILL_STEP:
            session.stop()

    assert list(session.send(long, progress)) == []
    assert session.messages == [] and not session.answers[-1].kept
    assert model.tokens == PREFILL_STEP
    assert "".join(session.send(long + "z")) == str(3 * PREFILL_STEP)
    assert session.answers[-1].reused == PREFILL_STEP


def test_a_stop_before_the_first_step_is_not_lost():
    session = start(FakeModel())
    session.stop()
    assert list(session.send("a")) == []
    assert "".join(session.send("b")) == "bb#1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
@pytest.mark.parametrize("calls", [0, 4])
def test_an_error_inside_the_model_leaves_cache_and_messages_consistent(error, calls):
    model = FakeModel()
    session = start(model)
    "".join(session.send("a"))
    model.fed.clear()

    def fail() -> None:
        if len(model.fed) >= calls:
            raise error

    model.before = fail
    pieces = []
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        pieces += session.send("bcdef")
    model.before = lambda: None
    exchanges = 1 + bool(calls)
    assert len(session.messages) == 2 * exchanges
    if calls:
        assert said(session)[-1] and "bcdefbcdef#2".startswith(said(session)[-1])
    assert "".join(session.send("g")) == f"gg#{exchanges + 1}"
    assert session.answers[-1].reused == 0  # what the cache held couldn't be known


def test_a_failed_regeneration_keeps_the_old_answer():
    model = FakeModel()
    session = start(model)
    "".join(session.send("a"))
    session.stop()
    assert list(session.regenerate()) == []
    assert said(session) == ["a", "aa#1"]


def test_a_cache_that_cannot_be_cut_is_built_anew_only_when_it_must():
    model = FakeModel(cache=Window)
    session = start(model)
    assert "".join(session.send("ab")) == "abab#1"
    assert "".join(session.send("cd")) == "cdcd#2"
    assert session.answers[-1].reused == len("<ab!<abab#1!")
    assert "".join(session.regenerate()) == "cdcd#2"
    assert session.answers[-1].reused == 0


def test_restart_keeps_the_system_prompt_in_the_cache():
    model = FakeModel()
    session = start(model, system="sys")
    "".join(session.send("ab"))
    session.restart()
    assert "".join(session.send("cd")) == "cdcd#1"
    assert session.answers[-1].reused == len("<sys!<")


def test_all_stop_tokens_end_an_answer():
    class Two(FakeModel):
        def __call__(self, ids, cache):  # ends with <pad> instead of <end>
            logits = super().__call__(ids, cache)
            return mx.roll(logits, -1, axis=-1) if int(logits[0, -1].argmax()) == 1 else logits

    tokenizer = fake_tokenizer()
    tokenizer.eos_token_ids = {0, 1}
    session = Session(Two(), tokenizer, Settings(temp=0, max_tokens=40))
    assert "".join(session.send("ab")) == "abab#1"
    assert session.answers[-1].finish == "stop"
    tokenizer.eos_token_ids = {1}
    assert len("".join(session.send("ab"))) > 8 and session.answers[-1].finish == "max_tokens"


def test_max_tokens_cuts_and_says_so():
    session = start(FakeModel(), max_tokens=3)
    assert "".join(session.send("abcdef")) == "abc"
    assert (session.answers[-1].finish, session.answers[-1].generated) == ("max_tokens", 3)
    assert "".join(session.send("x")) == "xx#"


def test_statistics_add_up():
    session = start(FakeModel(pause=0.002))
    "".join(session.send("abcd"))
    last = session.answers[-1]
    assert last.generated == len("abcdabcd#1") + 1
    assert 0.002 <= last.prefill_seconds <= last.first_token
    assert last.decode_seconds >= (last.generated - 2) * 0.002
    assert last.decode_rate == pytest.approx((last.generated - 1) / last.decode_seconds)
    assert last.prefill_rate == pytest.approx(last.prompt / last.prefill_seconds)
    assert last.peak_memory > 0
    "".join(session.send("e"))
    second = session.answers[-1]
    assert second.prefill_rate == pytest.approx(len("<e!<") / second.prefill_seconds)
    assert f"{last.prompt + last.generated} of unlimited" in last.line()


def test_a_seed_repeats_the_answers():
    class Even(FakeModel):
        def __call__(self, ids, cache):
            return 0 * super().__call__(ids, cache)

    def run(seed: int) -> str:
        settings = Settings(temp=1, top_p=1, seed=seed, max_tokens=20, repetition_penalty=1.1, top_k=10**6)
        return "".join(Session(Even(), fake_tokenizer(), settings).send("a"))

    assert run(1) == run(1) != run(2)


def test_half_characters_are_no_trouble():
    session = Session(FakeModel(), fake_tokenizer(), Settings(temp=0, system="\udcc3"))
    assert "".join(session.send("a\udce9")) == "a?a?#1"
