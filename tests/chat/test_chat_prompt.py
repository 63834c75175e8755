"""Templates of all kinds: with a system role, without, deaf to it, refusing, and none at all."""

import pytest
from chat_fakes import DEAF, NO_SYSTEM, FakeModel, fake_tokenizer

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.prompt import Prompter
from flashnorm_mlx.chat.session import Session
from flashnorm_mlx.errors import FlashNormError

TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]


def text(template: str | None, system: str | None) -> str:
    tokenizer = fake_tokenizer(template)
    return tokenizer.decode(Prompter(tokenizer).ids(system, TALK))


def test_a_system_role_is_used():
    expected = "<system>S<end><user>q<end><assistant>a<end><user>r<end><assistant>"
    tokenizer = fake_tokenizer()
    assert tokenizer.decode(Prompter(tokenizer).ids("S", TALK)) == expected


@pytest.mark.parametrize("template", [NO_SYSTEM, DEAF])
def test_a_template_without_a_system_role_gets_it_with_the_first_message(template):
    assert text(template, "S") == "<user>S\n\nq<end><assistant>a<end><user>r<end><assistant>"
    assert text(template, None) == "<user>q<end><assistant>a<end><user>r<end><assistant>"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never\nmind') }}", "{{ messages[7].content.x }}", "{% if %}"]
)
def test_a_template_that_refuses_is_one_line(template):
    session = Session(FakeModel(), fake_tokenizer(template), Settings(temp=0, system="S"))
    with pytest.raises(FlashNormError, match="chat template refuses") as caught:
        list(session.send("a"))
    assert "\n" not in str(caught.value) and session.messages == []


def test_without_a_template_the_text_goes_on():
    seen = []
    model = FakeModel()
    model._answer = lambda text: ""
    tokenizer = fake_tokenizer()
    tokenizer._tokenizer.chat_template = None
    tokenizer.has_chat_template = False
    session = Session(model, tokenizer, Settings(temp=0, system="Once."))
    assert not session.templated
    session._prompter.ids, ids = lambda *a: seen.append(ids(*a)) or seen[-1], session._prompter.ids
    list(session.send("a"))
    session.messages[-1]["content"] = " b"
    list(session.send("c"))
    assert tokenizer.decode(seen[-1]) == "Once.\na b\nc"


def test_the_leading_space_of_a_continuation_is_kept():
    tokenizer = fake_tokenizer(None)
    assert Prompter(tokenizer).continuation(tokenizer.encode("Once"), tokenizer.encode(" upon")) == " upon"
