"""Lists and ranges of numbers on the command line, written as llama-bench has them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from ..errors import FlashNormError

#: More values than this are a slip of the finger.
MOST = 1000

_ITEM = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


def numbers(text: str, *, low: int = 0, high: int = 10**7) -> list[int]:
    """``16,512-2048*2`` is 16, 512, 1024, 2048.

    ``a-b`` counts by one, ``a-b+s`` adds s, ``a-b*f`` multiplies by f; what is named twice is kept once, in the order
    in which it comes.

    Raises:
        FlashNormError: for anything else, a range that doesn't rise, or a value outside ``low`` to ``high``.
    """
    found: dict[int, None] = {}
    for item in text.split(","):
        for value in _expand(item.strip(), text):
            if not low <= value <= high:
                raise FlashNormError(f"{text!r}: {value} is not between {low} and {high}")
            found[value] = None
            if len(found) > MOST:
                raise FlashNormError(f"{text!r}: more than {MOST} values")
    return list(found)


def _expand(item: str, text: str) -> range | list[int]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise FlashNormError(f"{text!r}: {item!r} is neither a number nor a range such as 512-2048*2 or 0-64+16")
    first, last = int(match[1]), int(match[2] or match[1])
    by, step = match[3] or "+", int(match[4] or 1)
    if last < first:
        raise FlashNormError(f"{text!r}: {item!r} ends before it starts")
    if step < 1 or (by == "*" and (step < 2 or first < 1)):
        raise FlashNormError(f"{text!r}: {item!r} would never end")
    if by == "+":
        return range(first, last + 1, step)
    values = [first]
    while values[-1] * step <= last:
        values.append(values[-1] * step)
    return values


def number(low: float, high: float, kind: type = float) -> Callable[[str], Any]:
    """An argument's type for argparse: one number from ``low`` to ``high``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return parse
