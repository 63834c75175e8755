"""Public models' shapes: their config.json, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import FlashNormError


def shapes_folder() -> Path:
    """Where the shapes are: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).parent.parent
    for folder in (package / "_shapes", package.parent / "models" / "shapes"):
        if folder.is_dir():
            return folder
    raise FlashNormError("the shapes did not come with this installation; give a file: --shape config.json")


def shape_names() -> list[str]:
    """The names that :func:`read_shape` knows."""
    return sorted((file.stem for file in shapes_folder().glob("*.json")), key=str.lower)


def shape_name(shape: str) -> str:
    """``SmolLM2-135M`` of a name or a file."""
    return Path(shape).name.removesuffix(".json")


def read_shape(shape: str) -> dict[str, Any]:
    """The config of a shape's name, of a JSON file, or of a model's folder.

    Raises:
        FlashNormError: if there is none, or it is not a config.
    """
    given = Path(shape).expanduser()
    if given.is_dir():
        file = given / "config.json"
    elif shape.endswith(".json"):
        file = given
    else:
        known = {name.lower(): name for name in shape_names()}
        if shape.lower() not in known:
            raise FlashNormError(f"{shape}: no such shape, config or folder; `flashnorm bench --list` names the shapes")
        file = shapes_folder() / f"{known[shape.lower()]}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlashNormError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise FlashNormError(f"{file}: not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FlashNormError(f"{file}: model_type is missing; is this a config.json?")
    return config
