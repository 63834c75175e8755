"""Conversations in files: written whole or not at all, and read only if every part of them is right."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import FlashNormError
from .prompt import Message
from .settings import RULES, Settings

FORMAT = "flashnorm-chat-1"
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Saved:
    """What a file holds: the model's name, the settings (system prompt included) and the messages."""

    model: str
    settings: Settings
    messages: list[Message]


def resolve(name: str) -> Path:
    """The path that a user meant by `name`, `~` expanded and links followed."""
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise FlashNormError(f"{name} is no usable path: {error}.") from error


def save(path: Path, saved: Saved, *, replace: bool) -> None:
    """Write `saved` to `path` in one step: there is never half a file, and the old one stays if anything fails."""
    text = json.dumps({"format": FORMAT, **asdict(saved)}, ensure_ascii=False, indent=2) + "\n"
    partial = None
    try:
        if path.exists() and not path.is_file():
            raise FlashNormError(f"{path} is not a regular file: choose another name.")
        if path.exists() and not replace:
            raise FlashNormError(f"{path} exists already: /save -f FILE replaces it.")
        descriptor, partial = tempfile.mkstemp(prefix=".flashnorm-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        Path(partial).replace(path)
    except BaseException as error:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FlashNormError(f"{path} can't be written: {error.strerror}.") from error
        raise


def load(path: Path) -> Saved:
    """Read what `save` wrote; FlashNormError says what is wrong with anything else."""
    try:
        if not path.is_file():
            raise FlashNormError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}.")
        if path.stat().st_size > _LARGEST:
            raise FlashNormError(f"{path} is too large for a saved conversation.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlashNormError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise FlashNormError(f"{path} is not a saved conversation: it is no valid JSON.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FlashNormError(f'{path} is not a saved conversation: it lacks "format": "{FORMAT}".')
    model, settings, messages = (content.get(key) for key in ("model", "settings", "messages"))
    try:
        return Saved(_model(model), _settings(settings), _messages(messages))
    except FlashNormError as error:
        raise FlashNormError(f"{path} is damaged: {error}") from error


def _model(value: Any) -> str:
    if not isinstance(value, str):
        raise FlashNormError("the model's name is missing.")
    return value


def _settings(value: Any) -> Settings:
    if not isinstance(value, dict):
        raise FlashNormError("the settings are missing.")
    if unknown := sorted(set(value) - set(RULES)):
        raise FlashNormError(f"there is no setting {unknown[0]!r:.60}.")
    return Settings(**value)


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or len(value) % 2:
        raise FlashNormError("the messages are not a list of questions with their answers.")
    for number, message in enumerate(value):
        role = ("user", "assistant")[number % 2]
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise FlashNormError(f"message {number + 1} is not a text of the {role}.")
    return [{"role": message["role"], "content": message["content"]} for message in value]
