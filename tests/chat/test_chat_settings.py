"""The table of settings: types, ranges, and what is said about the wrong ones."""

import math
from dataclasses import fields

import pytest

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.settings import RULES, parse, shown
from flashnorm_mlx.errors import FlashNormError


def test_every_setting_has_its_rule_and_a_default_that_meets_it():
    assert [field.name for field in fields(Settings)] == list(RULES)
    Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temp", "0.7", 0.7),
        ("temp", " 1 ", 1.0),
        ("max_tokens", "12", 12),
        ("markdown", "on", True),
        ("stats", "False", False),
        ("seed", "off", None),
        ("max_context", "none", None),
    ],
)
def test_what_a_user_writes_is_understood(name, text, value):
    assert parse(name, text) == value
    assert parse(name, shown(value)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temp", "hot"),
        ("temp", "nan"),
        ("temp", "-1"),
        ("temp", "off"),
        ("top_p", "1.5"),
        ("max_tokens", "0"),
        ("max_tokens", "2.5"),
        ("top_k", ""),
        ("markdown", "maybe"),
        ("seed", "-3"),
        ("max_context", "1"),
        ("max_tokens", "9" * 5000),
    ],
)
def test_anything_else_is_refused_with_the_range(name, text):
    with pytest.raises(FlashNormError, match=f"^{name} takes ") as caught:
        parse(name, text)
    assert RULES[name].range in str(caught.value) and len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "wrong",
    [
        {"temp": "1"},
        {"temp": math.inf},
        {"max_tokens": True},
        {"markdown": 1},
        {"system": 3},
        {"top_k": None},
        {"seed": 1.0},
    ],
)
def test_settings_are_checked_however_they_are_made(wrong):
    with pytest.raises(FlashNormError, match=f"^{next(iter(wrong))} takes"):
        Settings(**wrong)
