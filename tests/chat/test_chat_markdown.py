"""Markdown in pieces: the same text as at once, in a screen of any height."""

import io
import re

import pytest
from chat_fakes import CHARACTERS
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from flashnorm_mlx.chat.markdown import MarkdownStream, finished
from flashnorm_mlx.chat.screen import clean

SAMPLE = """# Title

A paragraph with **bold**
text.

1. one

   more of one

2. two

```python
x = 1

y = 2
```

| a | b |
|---|---|
| 1 | 2 |

The end, see [this](http://example.org).
"""


def screen(height: int = 10) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=60, height=height, color_system=None), file


def visible(output: str, height: int = 10) -> list[str]:
    """The lines that a terminal of this height shows in the end, and those that scrolled out of it for good."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b[") and part.endswith("A"):
            row = max(row - int(part[2:-1] or 1), len(lines) - height, 0)
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return [line.rstrip() for line in lines]


def words(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def stream(text: str, size: int, height: int = 10) -> list[str]:
    console, file = screen(height)
    with MarkdownStream(console) as markdown:
        for start in range(0, len(text), size):
            markdown._drawn = 0  # draw every frame
            markdown.write(text[start : start + size])
    return visible(file.getvalue(), height)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_end_as_the_whole(size):
    console, file = screen()
    console.print(Markdown(SAMPLE, hyperlinks=False))
    assert words(stream(SAMPLE, size)) == words(visible(file.getvalue()))


def test_a_block_taller_than_the_screen_loses_nothing():
    text = "```\n" + "".join(f"line {number}\n\n" for number in range(40)) + "```\n"
    shown = [line.strip() for line in words(stream(text, 5, height=8))]
    assert shown == [f"line {number}" for number in range(40)]


def test_the_end_of_a_tall_block_is_what_is_seen_of_it():
    console, file = screen(8)
    with MarkdownStream(console) as markdown:
        markdown.write("```\n" + "".join(f"line {number}\n" for number in range(20)))
        shown = [line.strip() for line in words(visible(file.getvalue(), 8))]
    assert shown == [f"line {number}" for number in range(14, 20)]


@pytest.mark.parametrize("lines", range(1, 12))
def test_nor_does_one_that_breaks_off(lines):
    text = "# H\n\n```\n" + "".join(f"line {number}\n" for number in range(lines))
    shown = [line.strip() for line in words(stream(text, 3, height=8))]
    assert shown == ["H", *(f"line {number}" for number in range(lines))]


def test_what_was_shown_is_kept_when_an_answer_breaks_off():
    console, file = screen()
    with pytest.raises(KeyboardInterrupt), MarkdownStream(console) as markdown:
        markdown.write("One.\n\nTwo **thr")
        raise KeyboardInterrupt
    assert [line.strip() for line in words(visible(file.getvalue()))] == ["One.", "Two **thr"]
    assert file.getvalue().endswith("\n") and "\x1b[?25h" in file.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a\nb", "a\nb"),
        ("a\n\nb", "b"),
        ("a\n\n", "a\n\n"),
        ("- a\n\n  b", "- a\n\n  b"),
        ("```\na\n\nb", "```\na\n\nb"),
        ("```\na\n```\n\nb", "b"),
        ("````\n```\n\nb", "````\n```\n\nb"),
        ("~~~\n```\n\nb", "~~~\n```\n\nb"),
        ("```x```\n\nb", "b"),
        ("", ""),
    ],
)
def test_blocks_end_where_nothing_can_change_them(text, rest):
    assert text[finished(text) :] == rest


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab#*`~-1. |>[]()\n\\"), max_size=60))
def test_any_text_is_shown(text):
    letters = [letter for line in stream(text, 4) for letter in line if letter in "ab"]
    console, file = screen()
    console.print(Markdown(text, hyperlinks=False))
    whole = [letter for letter in file.getvalue() if letter in "ab"]
    assert len(letters) >= len(whole) - 2 * text.count("]")  # a link's target may stand in another block


def test_no_control_character_passes():
    assert clean("a\x1b[31mb\x00\x9b2J\r\x7f\n\tc é") == "a[31mb2J\n\tc é"
    assert not set(clean("".join(CHARACTERS))) & {"\x1b", "\x9b"}
