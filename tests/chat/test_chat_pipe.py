"""Standard input from a pipe: one message, one plain answer, an exit code."""

import io
import os
import subprocess
import sys
from pathlib import Path

import chat_program
import pytest

HERE = Path(__file__).parent
COMMAND = [sys.executable, str(HERE / "chat_program.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PYTHONWARNINGS": "error::ResourceWarning"}


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the chat on some bytes; exit code, output and error output."""

    def pipe(message: bytes | None, *options: str) -> tuple[int, str, str]:
        stdin = None if message is None else io.TextIOWrapper(io.BytesIO(message))
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["chat", *options])
        return chat_program.main(), *capfd.readouterr()

    return pipe


def test_the_answer_and_nothing_else():
    environment = {**ENVIRONMENT, "FORCE_COLOR": "1"}
    done = subprocess.run(COMMAND, input=b"two\nlines\n", capture_output=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"You said <two\nlines> as 1.\n", b"")


def test_an_output_that_cannot_show_a_character():
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(COMMAND, input="é".encode(), capture_output=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"You said <?> as 1.\n", b"")


def test_a_reader_who_leaves_is_no_error():
    script = f'echo long | {" ".join(COMMAND)} pause=0.001 | head -c 5; echo " ${{PIPESTATUS[1]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60, env=ENVIRONMENT, check=False)
    assert done.stdout == b"Long  0\n" and done.stderr == b""


def test_control_characters(run):
    assert run(b"escape") == (0, "[2J2Jdone\n", "")


def test_bytes_that_are_no_text(run):
    code, answer, error = run(b"a\xff")
    assert code == 0 and answer.startswith("You said <a") and error == ""


@pytest.mark.parametrize("message", [None, b"", b" \n\n"])
def test_no_message_is_an_error(run, message):
    code, answer, error = run(message)
    assert code == 2 and answer == ""
    assert error.startswith("flashnorm: standard input is empty") and error.count("\n") == 1


def test_what_was_cut_is_said_beside_the_answer(run):
    code, answer, error = run(b"long", "max_tokens=4")
    assert (code, answer) == (0, "Long\n") and "max_tokens = 4" in error
    code, answer, error = run(b"long", "limit=64")
    assert code == 0 and "the context of 64 tokens is full" in error


def test_a_message_too_long_is_one_line(run):
    code, answer, error = run(b"x" * 500, "limit=64")
    assert (code, answer) == (1, "")
    assert "503 tokens" in error and error.count("\n") == 1


def test_a_model_without_a_template_says_so(run):
    code, _, error = run(b"ab", "plain=1")
    assert code == 0 and "no chat template" in error


def test_markdown_stays_as_it_is(run):
    assert run(b"mark", "markdown=1") == (0, "# H\n\n**b**\n", "")
