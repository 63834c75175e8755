"""The chat as a person meets it, in a terminal."""

import os
import re
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from chat_fakes import TEMPLATE, FakeModel, fake_tokenizer

from flashnorm_mlx.chat import Settings, terminal

pexpect = pytest.importorskip("pexpect")
HERE = Path(__file__).parent
PROMPT, ALT_ENTER, CTRL_C, CTRL_D = ">>>", "\x1b\r", "\x03", "\x04"


@pytest.fixture
def start(tmp_path):
    chats = []

    def spawn(*options: str, columns: int = 80, output: str = "/dev/tty", **environment: str) -> pexpect.spawn:
        names = ("PATH", "HOME", "LANG", "PYTHONHOME", "VIRTUAL_ENV")
        env = {name: os.environ[name] for name in names if name in os.environ}
        env |= {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        env |= {"XDG_STATE_HOME": str(tmp_path / "state"), "LC_ALL": "C.UTF-8", **environment}
        program = shlex.join([sys.executable, str(HERE / "chat_program.py"), *options])
        arguments = ["-c", f"exec {program} > {output}"]
        chat = pexpect.spawn("bash", arguments, env=env, encoding="utf-8", timeout=10, dimensions=(24, columns))
        chats.append(chat)
        chat.expect_exact(PROMPT)
        return chat

    yield spawn
    for chat in chats:
        with suppress(OSError):  # it is closed
            chat.close(force=True)


def say(chat: pexpect.spawn, keys: str, expected: str) -> str:
    """Type `keys` and Enter, wait for `expected` and the next prompt; what was shown between the two."""
    chat.send(keys + "\r")
    chat.expect_exact(expected)
    chat.expect_exact(PROMPT)
    return chat.before


def leave(chat: pexpect.spawn, keys: str = CTRL_D) -> None:
    chat.send(keys)
    chat.expect(pexpect.EOF)
    chat.close()
    assert (chat.exitstatus, chat.signalstatus) == (0, None)


def test_a_visit(start, tmp_path):
    chat = start()
    assert "[bold]fake[/]" in chat.before  # no text is markup
    say(chat, "hello", "You said <hello> as 1.")
    say(chat, "markup", "[red]x[/red][/]")
    say(chat, "escape", "[2J2Jdone")
    say(chat, "empty", "The answer is empty.")
    say(chat, "//slash", "You said </slash> as 5.")
    say(chat, "/help", "/stats [on|off]")
    say(chat, "/sets", "did you mean /set?")
    say(chat, "/set temp hot", "temp takes 0 to 5")
    say(chat, "/regen", "You said </slash> as 5.")
    say(chat, "one" + ALT_ENTER + "two", "You said <one\r\ntwo> as 6.")
    say(chat, '"""a\r/b\rc"""', "You said <a\r\n/b\r\nc> as 7.")
    say(chat, "/cle\t", "is cleared")
    say(chat, "\x1b[200~pasted\nlines\x1b[201~", "You said <pasted\r\nlines> as 1.")
    assert "decode" in say(chat, "/stats on", "on now") + say(chat, "hi", "You said <hi> as 2.")
    say(chat, "/set markdown on", "on now")
    shown = say(chat, "mark", "H")
    assert "**b**" not in shown and "b" in shown
    say(chat, f"/save {tmp_path / 'x'}", "Saved 6 messages")
    say(chat, f"/load {tmp_path}", "not a regular file")
    leave(chat, "/quit\r")
    history = tmp_path / "state" / "flashnorm" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    again = start()
    say(again, "\x1b[A" * 4, "**b**")  # up, past /quit, /load and /save
    leave(again)


def test_ctrl_c_stops_an_answer_and_a_second_one_leaves(start):
    chat = start("pause=0.01")
    chat.send("long\r")
    chat.expect_exact("Long answer: 0, 1")
    chat.send("typed")
    chat.expect_exact("20, 21")
    assert "t" not in chat.before  # keys are not shown between the words
    chat.send(CTRL_C)
    chat.expect_exact("Stopped.")
    chat.expect_exact(PROMPT)
    assert "was cut" not in chat.before and "^C" not in chat.before
    say(chat, "more", "You said <more> as 2.")
    chat.send("long\r")
    chat.expect_exact("Long answer: 0, 1")
    chat.send(CTRL_C)
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_C)


def test_ctrl_c_at_the_prompt(start):
    chat = start()
    chat.send("half a line" + CTRL_C)
    chat.expect_exact(PROMPT)
    chat.send(CTRL_C)
    chat.expect_exact("Press Ctrl-C again or Ctrl-D to leave.")
    chat.expect_exact(PROMPT)
    say(chat, "stay", "You said <stay> as 1.")
    chat.send(CTRL_C)
    chat.expect_exact("Press Ctrl-C again")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_C)


def test_ctrl_c_while_the_prompt_is_read(start):
    chat = start("pause=1")
    chat.send("x" * 600 + "\r")
    chat.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
    chat.send(CTRL_C)
    chat.expect_exact("the message is taken back")
    chat.expect_exact(PROMPT)
    chat.send("y" * 600 + "\r")
    chat.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
    chat.send(CTRL_C)
    time.sleep(0.2)
    leave(chat, CTRL_C)  # a second one doesn't wait for the model


def test_keys_pressed_during_an_answer_wait_for_the_prompt(start):
    chat = start("pause=0.001")
    chat.send("long\r")
    chat.expect_exact("Long answer: 0, 1")
    chat.send("tyqp\x7f\x7fped" + ALT_ENTER + "two\r" + CTRL_D)
    chat.expect_exact("You said <typed\r\ntwo> as 2.")
    chat.expect(pexpect.EOF)


def test_the_terminal_keeps_keys_until_the_chat_ends(monkeypatch):
    """Not in each answer alone: between an answer and the prompt it would read lines, and lose Ctrl-D."""
    events = []

    @contextmanager
    def hidden(self):
        events.append("hidden")
        yield
        events.append("restored")

    class Typed:
        trouble, texts = None, ["hello", "/help", "/quit"]

        def read(self):
            events.append("read")
            return self.texts.pop(0)

    monkeypatch.setattr(terminal.Screen, "typing_hidden", hidden)
    monkeypatch.setattr(terminal, "Editor", Typed)
    model = FakeModel(lambda text: "hi")
    assert terminal._Conversation(model, fake_tokenizer(TEMPLATE), Settings(temp=0), "fake").run() == 0
    assert events == ["hidden", "read", "read", "read", "restored"]


def test_a_terminal_that_is_gone(start, tmp_path):
    chat = start("pause=0.01", "signals=1", output=f"/dev/tty 2> {tmp_path / 'errors'}")
    chat.send("long\r")
    chat.expect_exact("Long answer: 0, 1")
    os.close(chat.child_fd)
    for _ in range(100):
        if not chat.isalive():
            break
        time.sleep(0.1)
    # what else is there depends on which comes first, the signal or the write that fails
    assert not chat.isalive() and "termios.error" not in (tmp_path / "errors").read_text()


@pytest.mark.parametrize("when", ["at the prompt", "in an answer"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_told_to_end(start, when: str, name: str) -> None:
    chat = start("pause=0.01", "signals=1")
    if when == "in an answer":
        chat.send("long\r")
        chat.expect_exact("Long answer: 0, 1")
    chat.kill(getattr(signal, name))
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 130 and "Ctrl-C" not in chat.before


def test_ctrl_backslash_does_not_leave_a_broken_terminal(start):
    chat = start("pause=0.001")
    chat.send("long\r")
    chat.expect_exact("Long answer: 0, 1")
    chat.send("\x1c")
    chat.expect_exact("The answer was cut")
    chat.expect_exact(PROMPT)
    leave(chat)


def test_a_terminal_that_can_do_nothing(start):
    chat = start(TERM="dumb")
    say(chat, "hello", "You said <hello> as 1.")
    say(chat, '"""a\rb"""', "You said <a\r\nb> as 2.")
    chat.send(CTRL_D)
    chat.expect(pexpect.EOF)
    assert "\x1b" not in chat.before


def test_answers_that_go_to_a_file(start, tmp_path):
    chat = start("markdown=1", output=str(tmp_path / "answers"))
    chat.send("hello\r")
    chat.expect_exact(PROMPT)
    chat.send("/regen\r")
    chat.expect_exact(PROMPT)
    leave(chat)
    assert (tmp_path / "answers").read_text() == "You said <hello> as 1.\n" * 2


def test_answers_that_go_to_a_reader_who_leaves(start):
    chat = start("pause=0.001", output=">(head -c 5 > /dev/null)")
    leave(chat, "long\r")


def test_a_narrow_terminal_without_colour_or_state(start, tmp_path):
    (tmp_path / "state").write_text("in the way")
    chat = start(columns=40, NO_COLOR="1")
    assert "not kept" in chat.before
    say(chat, "hello", "You said <hello> as 1.")
    shown = say(chat, "/set", "temp")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split("\r\n"))) <= 40
    leave(chat)


def test_outside_of_the_main_thread_signals_are_left_alone():
    from flashnorm_mlx.chat.terminal import _interruptible

    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with _interruptible(None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before] == [signal.getsignal(signal.SIGINT)]
