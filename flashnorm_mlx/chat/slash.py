"""The slash commands: a table of name, usage, help and function. They speak through a Desk, not to a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from pathlib import Path

from ..errors import FlashNormError
from . import store
from .session import Session
from .settings import RULES, Settings, parse, shown
from .statistics import total_rows

SETTABLE = [item.name for item in fields(Settings) if item.name != "system"]


class Action(Enum):
    """What is left to do for whoever runs a command."""

    NOTHING = auto()
    REGENERATE = auto()
    QUIT = auto()


@dataclass
class Desk:
    """What a command works on: the session, the model's name, two ways to speak, and the files that are ours."""

    session: Session
    name: str
    say: Callable[[str], None]
    table: Callable[[list[tuple[str, ...]]], None]
    files: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class Command:
    """One line of `/help`, and what it does with the text behind its name."""

    usage: str
    help: str
    run: Callable[[Desk, str], Action | None]


def execute(desk: Desk, line: str) -> Action:
    """Run the command that `line` names; FlashNormError says what is wrong with it."""
    name, *rest = line[1:].split(maxsplit=1) or [""]
    command = COMMANDS.get(ALSO.get(name.lower(), name.lower()))
    if command is None:
        near = difflib.get_close_matches(name.lower(), [*COMMANDS, *ALSO], 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them; // begins a message with a slash."
        raise FlashNormError(f"There is no command /{name:.40}: {hint}")
    return command.run(desk, rest[0].strip() if rest else "") or Action.NOTHING


def _help(desk: Desk, argument: str) -> None:
    desk.table([(command.usage, command.help) for command in COMMANDS.values()])
    desk.say('Several lines: Alt-Enter between them, or """ before and after. Ctrl-C stops an answer, Ctrl-D leaves.')


def _clear(desk: Desk, argument: str) -> None:
    desk.session.restart()
    desk.say("The conversation is cleared; system prompt and settings stay.")


def _system(desk: Desk, argument: str) -> None:
    session = desk.session
    if not argument:
        desk.say(session.settings.system or "There is no system prompt; /system TEXT sets one.")
        return
    session.settings = replace(session.settings, system=None if argument == "-" else argument)
    session.restart()
    desk.say(f"The system prompt is {'removed' if argument == '-' else 'set'}; a new conversation starts.")


def _regenerate(desk: Desk, argument: str) -> Action:
    return Action.REGENERATE


def _save(desk: Desk, argument: str) -> None:
    words = argument.split(" ")
    force = "-f" in (words[0], words[-1])
    name = argument.removeprefix("-f").removesuffix("-f").strip() if force else argument
    if not name:
        raise FlashNormError("Which file? /save FILE writes the conversation to it.")
    path = store.resolve(name)
    session = desk.session
    store.save(path, store.Saved(desk.name, session.settings, session.messages), replace=force or path in desk.files)
    desk.files.add(path)
    desk.say(f"Saved {len(session.messages)} messages to {path}.")


def _load(desk: Desk, argument: str) -> None:
    if not argument:
        raise FlashNormError("Which file? /load FILE takes up a conversation that /save wrote.")
    path = store.resolve(argument)
    saved = store.load(path)
    desk.session.settings = saved.settings
    desk.session.restart(saved.messages)
    desk.session.seed()
    desk.files.add(path)
    other = "" if saved.model == desk.name else f" It was held with {saved.model}; {desk.name} goes on."
    desk.say(f"Loaded {len(saved.messages)} messages and their settings.{other}")


def _set(desk: Desk, argument: str) -> None:
    session = desk.session
    name, _, text = argument.replace("=", " ").partition(" ")
    if not name:
        values = ((name, shown(getattr(session.settings, name)), RULES[name]) for name in SETTABLE)
        desk.table([(name, value, f"{rule.help} ({rule.range})") for name, value, rule in values])
        return
    if name not in SETTABLE:
        near = difflib.get_close_matches(name, SETTABLE, 1)
        hint = "/system sets the system prompt." if name == "system" else f"did you mean {near[0]}?" if near else ""
        raise FlashNormError(f"There is no setting {name:.40}: {hint or '/set lists them.'}")
    if not text.strip():
        desk.say(f"{name} is {shown(getattr(session.settings, name))} ({RULES[name].range}): {RULES[name].help}.")
        return
    session.settings = replace(session.settings, **{name: parse(name, text)})
    if name == "seed":
        session.seed()
    desk.say(f"{name} is {shown(getattr(session.settings, name))} now.")


def _stats(desk: Desk, argument: str) -> None:
    answers = desk.session.answers
    if argument:
        _set(desk, f"stats {argument}")
    elif not answers:
        desk.say("There are no figures yet: send a message first.")
    else:
        desk.say("Last answer")
        desk.table(list(answers[-1].rows()))
        desk.say("All answers since the start")
        desk.table(list(total_rows(answers)))


def _quit(desk: Desk, argument: str) -> Action:
    return Action.QUIT


COMMANDS = {
    "help": Command("/help", "this list", _help),
    "clear": Command("/clear", "start a new conversation; the system prompt stays", _clear),
    "system": Command("/system [TEXT|-]", "show, set or (-) remove the system prompt; starts anew", _system),
    "regen": Command("/regen", "give the last answer again", _regenerate),
    "save": Command("/save [-f] FILE", "write conversation and settings to a file (-f replaces it)", _save),
    "load": Command("/load FILE", "take up a saved conversation", _load),
    "set": Command("/set [NAME [VALUE]]", "list the settings, or show or change one", _set),
    "stats": Command("/stats [on|off]", "tokens, speed and memory; on shows them with each answer", _stats),
    "quit": Command("/quit", "leave (also Ctrl-D)", _quit),
}

#: What other chat programs call a command.
ALSO = {"exit": "quit", "bye": "quit", "regenerate": "regen", "reset": "clear"}
