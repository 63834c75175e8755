"""Word wrap: no word is cut, nothing is lost, in whatever pieces the text comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from flashnorm_mlx.chat.wrap import WordWrap

WORDS = st.text("ab,é", min_size=1, max_size=9)


def wrapped(pieces: list[str], width: int) -> str:
    wrap = WordWrap(width)
    return "".join(map(wrap.feed, pieces)) + wrap.flush()


@given(st.lists(WORDS, max_size=30), st.integers(9, 40), st.integers(1, 7))
def test_words_stay_whole_and_lines_fit(words: list[str], width: int, piece: int) -> None:
    text = " ".join(words)
    out = wrapped([text[i : i + piece] for i in range(0, len(text), piece)], width)
    assert out.split() == words
    assert all(cell_len(line) <= width for line in out.split("\n"))
    assert out == wrapped([text], width)


def test_breaks_indents_and_wide_characters() -> None:
    assert wrapped(["one two three"], 7) == "one two\nthree"
    assert wrapped(["a\n\n  b c"], 80) == "a\n\n  b c"
    assert wrapped(["def f():\n    return 1\n"], 80) == "def f():\n    return 1\n"
    assert wrapped(["你好世界"], 4) == "你好\n世界"
    assert wrapped(["x" * 25 + " yy z"], 10) == "x" * 25 + " yy z"


def test_a_word_is_shown_once_it_has_ended() -> None:
    wrap = WordWrap(20)
    assert [wrap.feed(piece) for piece in ("He", "llo", " wor", "ld.", "\n")] == ["", "", "Hello", "", " world.\n"]
