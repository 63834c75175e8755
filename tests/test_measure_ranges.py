"""Lists and ranges on the command line."""

from __future__ import annotations

import pytest

from flashnorm_mlx import FlashNormError
from flashnorm_mlx.measure.ranges import numbers

GOOD = {
    "16": [16],
    "16,512-2048*2": [16, 512, 1024, 2048],
    "0,4096": [0, 4096],
    "1-4": [1, 2, 3, 4],
    "0-64+32": [0, 32, 64],
    "100-900*3": [100, 300, 900],
    "5, 5,4-6": [5, 4, 6],
    "512-1000*2": [512],
}


@pytest.mark.parametrize(("text", "values"), GOOD.items(), ids=list(GOOD))
def test_values(text: str, values: list[int]) -> None:
    assert numbers(text) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither a number nor a range"),
        ("1,,2", "neither"),
        ("-5", "neither"),
        ("1.5", "neither"),
        ("x", "'x' is neither"),
        ("9-3", "ends before it starts"),
        ("0-8*2", "would never end"),
        ("2-8*1", "would never end"),
        ("2-8+0", "would never end"),
        ("0-5000", "more than 1000 values"),
        ("99999999", "is not between 0 and"),
    ],
)
def test_nonsense_is_a_line(text: str, says: str) -> None:
    with pytest.raises(FlashNormError) as error:
        numbers(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
