"""The model that ships with the project, converted on first use."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from . import __version__
from .converter import convert
from .errors import FlashNormError
from .loader import Progress
from .paths import cache_folder

FILES = ("config.json", "model.safetensors", "tokenizer.json")


def demo_source() -> Path:
    """The demo's folder: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).parent
    for folder in (package / "_demo", package.parent / "models" / "demo"):
        if (folder / "config.json").is_file():
            return folder
    raise FlashNormError("the demo model did not come with this installation; name a model: flashnorm chat MODEL")


def converted_demo(progress: Progress | None = None) -> Path:
    """The demo, folded and quantised, in the user's cache; made if this version of it is not there yet."""

    source = demo_source()
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()[:12]
    try:
        target = cache_folder() / f"demo-{__version__}-{digest}"
    except RuntimeError as error:
        raise FlashNormError(f"{error} Set XDG_CACHE_HOME to a folder for the converted demo") from None
    if target.is_dir() and not all((target / file).is_file() for file in FILES):
        shutil.rmtree(target, ignore_errors=True)  # damaged since
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlashNormError(
                f"{target.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
            ) from None
        try:
            convert(source, target, progress=progress)
        except FlashNormError:
            if not target.exists():  # else another process made it meanwhile
                raise
    return target
