"""Where files are kept for a user that nobody names. All of it raises RuntimeError for a user without a home."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """For what can be made again: in ``$XDG_CACHE_HOME``, or where macOS or Linux keep such things."""
    return _folder("XDG_CACHE_HOME", "Library/Caches", ".cache")


def state_folder() -> Path:
    """For what can't: in ``$XDG_STATE_HOME``, or where macOS or Linux keep such things."""
    return _folder("XDG_STATE_HOME", "Library/Application Support", ".local/state")


def _folder(variable: str, on_macos: str, elsewhere: str) -> Path:
    named = os.environ.get(variable)
    base = Path(named) if named else Path.home() / (on_macos if sys.platform == "darwin" else elsewhere)
    return base / "flashnorm"
