"""Paths that a user names, and where files are kept for a user that nobody names.

Where there is no home, the latter raise RuntimeError.
"""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path

from .errors import FlashNormError


def local(path: str | Path) -> Path:
    """A path with ``~`` expanded; a FlashNormError for what can't be one."""
    try:
        expanded = Path(path).expanduser()
        str(expanded).encode()
        expanded.exists()  # raises for a name that is too long, or has a null byte
    except UnicodeEncodeError:
        raise FlashNormError(f"{str(path)[:80]!r}: not a name in UTF-8; rename it") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FlashNormError(f"{str(path)[:80]!r}: {reason}") from None
    if not str(path):
        raise FlashNormError("the path is empty; name a folder")
    return expanded


def check_plain(file: Path) -> None:
    """Raise a FlashNormError for what exists and is no plain file: reading a pipe would wait for ever."""
    if file.exists() and not file.is_file():
        raise FlashNormError(f"{file}: not a plain file")


def check_finite(file: Path) -> None:
    """Raise a FlashNormError for a device, which may have no end; files and pipes have one."""
    if file.is_char_device() or file.is_block_device():
        raise FlashNormError(f"{file}: a device, not a file")


def check_globless(path: Path) -> None:
    """Raise a FlashNormError for a model's folder that mlx-lm can't load from: it takes the name for a pattern."""
    if glob.escape(str(path)) != str(path):
        raise FlashNormError(f"{path}: mlx-lm can't load from a path with *, ? or [ in it; give it another name")


def cache_folder() -> Path:
    """For what can be made again: in ``$XDG_CACHE_HOME``, or where macOS or Linux keep such things."""
    return _folder("XDG_CACHE_HOME", "Library/Caches", ".cache")


def state_folder() -> Path:
    """For what can't: in ``$XDG_STATE_HOME``, or where macOS or Linux keep such things."""
    return _folder("XDG_STATE_HOME", "Library/Application Support", ".local/state")


def _folder(variable: str, on_macos: str, elsewhere: str) -> Path:
    named = Path(os.environ.get(variable, ""))
    if not named.is_absolute():  # which the XDG specification says to ignore
        named = Path.home() / (on_macos if sys.platform == "darwin" else elsewhere)
    return named / "flashnorm"
