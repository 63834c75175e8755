"""A value of config.json: of which type it has to be, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FlashNormError

#: A field's type: an integer that may be 0.
Count = int


def fail(what: str) -> None:
    """Raise a FlashNormError about config.json."""
    raise FlashNormError(f"config.json: {what}")


def refuse(raw: Mapping[str, Any], model_type: str, expected: Mapping[str, Any]) -> None:
    """Raise a FlashNormError for a key whose value asks for what a family's model doesn't have."""
    for key, value in expected.items():
        if raw.get(key) not in (None, value):
            fail(f"{key} {raw[key]!r} is not supported for {model_type} ({value!r} is)")


def is_number(value: object) -> bool:
    """A finite number of ordinary size; JSON admits any, and booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def typed(name: str, annotation: str, value: Any) -> Any:
    """``value`` as the field's type says, or a FlashNormError. All our floats and integers but counts are positive."""
    kind = annotation.split(" | ")[0]
    if kind == "Count" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31):
        fail(f"{name} must be an integer from 0 on, not {value!r}")
    if kind == "int" and not (is_number(value) and value == int(value) and 1 <= value < 2**31):
        fail(f"{name} must be a positive integer, not {value!r}")
    if kind == "float" and not (is_number(value) and value > 0):
        fail(f"{name} must be a positive number, not {value!r}")
    if kind in ("bool", "str", "dict", "list"):
        expected = {"bool": bool, "str": str, "dict": dict, "list": list}[kind]
        if not isinstance(value, expected):
            fail(f"{name} must be a {kind}, not {value!r}")
    return int(value) if kind == "int" else float(value) if kind == "float" else value
