"""What a person types: quotes, completion, and the history that outlives the chat."""

import sys
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from flashnorm_mlx.chat.editor import _Commands, is_open, unquote
from flashnorm_mlx.chat.history import history_path, open_history


@pytest.mark.parametrize("text", ['"""', '""""', '"""""', '"""a', '"""a\n', '"""a"', '"""a\n""" b'])
def test_open_quotes(text):
    assert is_open(text)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('""""""', ""),
        ('"""a"""', "a"),
        ('"""a\nb"""', "a\nb"),
        ('"""\na\n\nb\n"""  ', "a\n\nb"),
        ('"""\n\n  a"""', "\n  a"),
    ],
)
def test_closed_quotes(text, inside):
    assert not is_open(text) and unquote(text) == inside


@pytest.mark.parametrize("text", ["", "a", 'say """', '/help """'])
def test_no_quotes(text):
    assert not is_open(text)


def test_completion():
    def complete(text: str) -> list[str]:
        return [
            text[: len(text) + c.start_position] + c.text for c in _Commands().get_completions(Document(text), event)
        ]

    event = CompleteEvent()
    assert complete("/s") == ["/system", "/save", "/set", "/stats"]
    assert complete("/set m") == ["/set max_tokens", "/set min_p", "/set markdown", "/set max_context"]
    assert complete("s") == complete("/x") == complete("/load s") == []


def test_history_outlives_the_chat(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history, trouble = open_history()
    assert trouble is None
    for line in ("one", "two\nlines", "half \udce9"):
        history.append_string(line)
    assert list(open_history()[0].load_history_strings()) == ["half ?", "two\nlines", "one"]
    assert history_path().stat().st_mode & 0o777 == 0o600 and history_path().parent.stat().st_mode & 0o777 == 0o700


def test_history_that_goes_away_is_no_reason_to_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history, _ = open_history()
    history_path().unlink()
    history_path().mkdir()
    history.append_string("one")
    assert list(history.load_history_strings()) == []
    again, trouble = open_history()
    assert "not kept" in trouble
    again.append_string("two")


def test_where_the_history_is(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert history_path() == tmp_path / "Library" / "Application Support" / "flashnorm" / "chat_history"
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_path() == tmp_path / ".local" / "state" / "flashnorm" / "chat_history"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert "no home" in open_history()[1]
