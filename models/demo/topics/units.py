"""Units of length, weight, volume, time and number: conversions with whole answers."""

from __future__ import annotations

from topics.language import Dice, Talk, Turn, ask

UNITS = (  # (the larger unit, how many of, the smaller unit)
    ("kilometre", 1000, "metre"), ("metre", 100, "centimetre"), ("centimetre", 10, "millimetre"), ("metre", 1000, "millimetre"),
    ("kilogram", 1000, "gram"), ("tonne", 1000, "kilogram"), ("litre", 1000, "millilitre"), ("hour", 60, "minute"), ("minute", 60, "second"),
    ("day", 24, "hour"), ("week", 7, "day"), ("year", 12, "month"), ("decade", 10, "year"), ("century", 100, "year"), ("foot", 12, "inch"),
    ("yard", 3, "foot"), ("dozen", 12, "piece"), ("kilobyte", 1000, "byte"), ("megabyte", 1000, "kilobyte"), ("gigabyte", 1000, "megabyte"),
    ("byte", 8, "bit"), ("euro", 100, "cent"), ("pound", 16, "ounce"),
)
PLURALS = {"foot": "feet", "inch": "inches", "century": "centuries", "dozen": "dozen"}
SHORT = {"kilometre": "km", "metre": "m", "centimetre": "cm", "millimetre": "mm", "kilogram": "kg", "gram": "g", "litre": "l", "millilitre": "ml",
         "hour": "h", "minute": "min", "second": "s", "kilobyte": "KB", "megabyte": "MB", "gigabyte": "GB"}
AMERICAN = {"kilometre": "kilometer", "metre": "meter", "centimetre": "centimeter", "millimetre": "millimeter", "litre": "liter", "millilitre": "milliliter"}
HOW_MANY = (
    "How many {wanted} are [in |]{given}?", "How many {wanted} are in {given}?", "Convert {given} [to|into] {wanted}[|.]", "What is {given} in {wanted}?",
    "{given} in {wanted}[|?]", "[Can|Could] you convert {given} to {wanted}?", "How many {wanted} [does|do] {given} have?", "{given} are how many {wanted}?",
    "Please convert {given} to {wanted}.", "Tell me how many {wanted} {given} are.", "How many {wanted} make {given}?",
)
LONGER = ("[Which|What] is [longer|more|larger]: {x} or {y}?", "[Which|What] is more, {x} or {y}?")


def plural(unit: str) -> str:
    return PLURALS.get(unit, unit + "s")


def amount(count: int, unit: str) -> str:
    """The count with its unit in the right number: 1 metre, 2 metres."""
    return f"{count} {unit if count == 1 else plural(unit)}"


def asked_amount(dice: Dice, count: int, unit: str) -> str:
    """The amount as a user may write it: abbreviated, in American spelling, or with an article."""
    if unit in SHORT and dice.chance(0.15):
        return f"{count}{dice.pick(('', ' '))}{SHORT[unit]}"
    if unit in AMERICAN and dice.chance(0.3):
        unit = AMERICAN[unit]
    if count == 1 and dice.chance(0.5):
        return ("an " if unit in ("hour", "ounce", "inch") else "a ") + unit
    return f"{count} {unit if count == 1 else PLURALS.get(unit, unit + 's')}"


def asked_unit(dice: Dice, unit: str) -> str:
    if unit in AMERICAN and dice.chance(0.3):
        unit = AMERICAN[unit]
    return plural(unit)


def conversion(dice: Dice, talk: Talk) -> list[Turn]:
    large, factor, small = dice.pick(UNITS)
    count = dice.weighted([(3, 1), (4, dice.number(2, 12)), (3, dice.number(2, 99 if factor >= 100 or factor == 10 else 12))])
    many = count * factor
    if dice.chance(0.6):
        question = ask(dice, HOW_MANY, given=asked_amount(dice, count, large), wanted=asked_unit(dice, small))
        return [Turn(question, f"{amount(count, large)} {'is' if count == 1 else 'are'} {amount(many, small)}.", f"{amount(many, small)}.")]
    question = ask(dice, HOW_MANY, given=asked_amount(dice, many, small), wanted=asked_unit(dice, large))
    return [Turn(question, f"{amount(many, small)} are {amount(count, large)}.", f"{amount(count, large)}.")]


def comparison(dice: Dice, talk: Talk) -> list[Turn]:
    """Two amounts in a large and a small unit; the answer converts first."""
    large, factor, small = dice.pick([unit for unit in UNITS if unit[0] != "dozen"])
    count = dice.number(1, 9)
    many = count * factor
    other = max(2, many + dice.pick((-1, 1)) * dice.number(1, max(factor // 2, 1)))
    if other == many:
        other += 1
    pair = [amount(count, large), amount(other, small)]
    if dice.chance(0.5):
        pair.reverse()
    winner = amount(count, large) if many > other else amount(other, small)
    verb = "is" if count == 1 else "are"
    return [Turn(ask(dice, LONGER, x=pair[0], y=pair[1]), f"{amount(count, large)} {verb} {amount(many, small)}, so {winner} is more.", f"{winner}.".capitalize())]


def units(dice: Dice, talk: Talk) -> list[Turn]:
    return dice.weighted([(5, conversion), (1, comparison)])(dice, talk)
