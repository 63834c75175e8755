"""The chat itself: a loop for a person at a terminal, one answer for a pipe."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import FlashNormError, Terminated
from .editor import Editor, is_open, unquote
from .screen import Screen, clean, write
from .session import Progress, Session
from .settings import Settings
from .slash import Action, Desk, execute

NO_TEMPLATE = "This model has no chat template: it continues your text instead of answering it."
INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended, by convention."""


def chat(model: Any, tokenizer: Any, settings: Settings, *, name: str) -> int:
    """Talk with `model`, shown as `name`, and return an exit code.

    `model` and `tokenizer` are as `load` or mlx-lm's `load` return them. With a person at the terminal this runs until
    they leave; otherwise standard input is one message, and its answer goes to standard output.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # a prompt's length is our care
    try:
        if sys.stdin is not None and sys.stdin.isatty():
            return _Conversation(model, tokenizer, settings, name).run()
        return _answer_input(model, tokenizer, settings)
    except BrokenPipeError:  # whoever reads has enough; what is still buffered must not raise when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def ending(session: Session) -> str | None:
    """A line on why the last answer ended, where the model didn't end it itself."""
    last = session.answers[-1]
    if last.finish == "interrupted":
        return "Stopped." if last.kept else "Stopped before the answer began: the message is taken back."
    if not session.messages[-1]["content"].strip():
        return "The answer is empty."
    if last.finish == "max_tokens":
        return f"The answer was cut after max_tokens = {last.generated} tokens."
    if last.finish == "context":
        return f"The answer was cut: the context of {last.limit} tokens is full."
    return None


class _Leave(KeyboardInterrupt):
    """A second Ctrl-C, before the answer had time to stop."""


class _Conversation:
    """A person at a terminal."""

    def __init__(self, model: Any, tokenizer: Any, settings: Settings, name: str) -> None:
        self._screen = Screen()
        self._session = Session(model, tokenizer, settings, self._screen.say)
        self._desk = Desk(self._session, name, self._screen.say, self._screen.table)
        self._editor = Editor()
        self._leaving = False

    def run(self) -> int:
        self._screen.say(f"{self._desk.name}: /help lists the commands, Ctrl-D leaves.")
        for line in (self._editor.trouble, None if self._session.templated else NO_TEMPLATE):
            if line:
                self._screen.say(line)
        with self._screen.typing_hidden():
            return self._talk()

    def _talk(self) -> int:
        while True:
            try:
                text = self._editor.read()
                self._leaving = False
                if self._turn(text) is Action.QUIT:
                    return 0
            except (EOFError, _Leave):
                return 0
            except Terminated:
                raise
            except KeyboardInterrupt:
                if self._leaving and not self._editor.abandoned:
                    return 0
                self._leaving = not self._editor.abandoned
                if self._leaving:
                    self._screen.say("Press Ctrl-C again or Ctrl-D to leave.")
            except FlashNormError as error:
                self._screen.say(str(error), "red")
            except (RuntimeError, MemoryError) as error:  # how MLX says that the device failed or is full
                self._screen.say(f"The answer failed, the conversation is kept: {error}", "red")

    def _turn(self, text: str) -> Action:
        if text.startswith('"""') and not is_open(text):
            text = unquote(text)
        elif text.startswith("//"):
            text = text[1:]
        elif text.startswith("/"):
            action = execute(self._desk, text)
            if action is Action.REGENERATE:
                self._answer(self._session.regenerate)
            return action
        if text.strip():
            self._answer(lambda progress: self._session.send(text, progress))
        return Action.NOTHING

    def _answer(self, answer: Callable[[Progress], Iterator[str]]) -> None:
        session, settings = self._session, self._session.settings
        with _interruptible(session), self._screen.waiting() as progress:
            self._screen.show(answer(progress), settings.markdown)
        if line := ending(session):
            self._leaving = session.answers[-1].finish == "interrupted"
            self._screen.say(f"{line} Ctrl-C again leaves." if self._leaving else line)
        if settings.stats:
            self._screen.say(session.answers[-1].line())


def _answer_input(model: Any, tokenizer: Any, settings: Settings) -> int:
    def say(line: str) -> None:
        print(clean(line), file=sys.stderr)

    session = Session(model, tokenizer, settings, say)
    if not session.templated:
        say(NO_TEMPLATE)
    try:
        text = sys.stdin.buffer.read().decode("utf-8", "replace").strip("\n") if sys.stdin else ""
        if not text.strip():
            say("flashnorm: standard input is empty: pipe a message in, or run the chat in a terminal.")
            return 2
        with _interruptible(session):
            write(session.send(text))
    except KeyboardInterrupt:
        return INTERRUPTED
    if line := ending(session):
        say(line)
    if settings.stats:
        say(session.answers[-1].line())
    return INTERRUPTED if session.answers[-1].finish == "interrupted" else 0


@contextmanager
def _interruptible(session: Session) -> Iterator[None]:
    """Let the first Ctrl-C stop the answer at its next token, where everything is in order, and a second one raise."""
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise _Leave
        pressed = True
        session.stop()

    try:
        previous = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
