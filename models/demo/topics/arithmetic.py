"""Sums, differences, products, quotients, comparisons and word problems; every answer is computed."""

from __future__ import annotations

from topics.language import Dice, Talk, Turn, ask
from topics.memory import PEOPLE

SIGNS = {"+": ("plus", "and"), "-": ("minus", "less"), "*": ("times", "multiplied by"), "/": ("divided by", "over")}
CALCULATE = (
    "What is {sum}?", "What is {sum}?", "What's {sum}?", "{sum}", "{sum} = ?", "{sum}?", "Calculate {sum}[|.]", "How much is {sum}?", "Compute {sum}[|.|, please.]",
    "[Can|Could] you [calculate|compute|tell me] {sum}?", "What does {sum} [make|give|equal]?", "Solve {sum}[|.]", "Please [calculate|compute] {sum}[|.]",
    "I need [to know |]{sum}[|.]", "What do you get for {sum}?", "{sum} makes what?", "Do you know what {sum} is?",
)
CHAINED = ("And {word} {b}?", "[Now|Then] {word} {b}[|.|?]", "{word} {b}?", "And now {word} {b}?", "What is that {word} {b}?", "And if you take that {word} {b}?")
THINGS = ("apples", "books", "coins", "stones", "cards", "pens", "eggs", "cups", "flowers", "balls", "stamps", "shells", "nuts", "cookies", "seats", "birds", "cars", "pencils", "bananas", "dogs", "fish", "trees",
          "letters", "bottles", "chairs", "sheep", "stars", "tickets")
GAIN = (
    "{name} has {x} {things} and [gets|buys|finds] {y} more. How many {things} does {name} have[| now]?",
    "There are {x} {things} in a box. {name} adds {y}. How many {things} are in the box?",
    "I have {x} {things} and [buy|get|find] {y} more. How many [{things} |]do I have?",
    "{name} has {x} {things}, and {other} has {y}. How many do they have together?",
)
LOSS = (
    "{name} has {x} {things} and [gives away|loses|sells] {y}. How many {things} are left?",
    "I have {x} {things} and [eat|lose|sell|give away] {y}. How many [{things} |]do I have[| left| now]?",
    "There are {x} {things}, and {y} [go away|are taken|break|are sold]. How many [{things} |]are [left|there now]?",
    "There are {x} {things} on the table. {name} takes {y}. How many are left?",
    "{name} has {x} {things} and gives {y} to {other}. How many {things} does {name} still have?",
)
GROUPS = (
    "{name} has {x} boxes with {y} {things} in each. How many {things} are there?",
    "One bag holds {y} {things}. How many {things} are in {x} bags?",
    "{x} friends have {y} {things} each. How many {things} do they have together?",
)
SHARES = (
    "{name} shares {x} {things} among {y} friends. How many does each get?",
    "{x} {things} are put into {y} equal rows. How many are in each row?",
)
COMPARE = ("Which is [larger|greater|bigger], {x} or {y}?", "What is [larger|more|bigger]: {x} or {y}?", "Is {x} or {y} [larger|greater]?")
LESS = ("Which is smaller, {x} or {y}?", "What is [smaller|less]: {x} or {y}?", "Is {x} or {y} smaller?")


def reserved(x: int, y: int) -> bool:
    """Is this problem kept for the held-out text? About one in forty of those with a number above 20 is."""
    return max(x, y) > 20 and (x * 7919 + y * 104729) % 41 == 0


def operands(dice: Dice, sign: str, held_out: bool) -> tuple[int, int]:
    """Two numbers for the sign: up to three digits for + and -, one factor of a product below 13; quotients are whole."""
    while True:
        if sign in "+-":
            limit = dice.weighted([(2, 20), (4, 99), (5, 999)])
            x, y = dice.number(limit * 9 // 10 if dice.chance(0.1) else 0, limit), dice.number(0, limit if dice.chance(0.7) else min(limit, 99))
            if sign == "-" and x < y and dice.chance(0.85):
                x, y = y, x
        else:
            x, y = dice.number(2, 12), dice.number(1, 12 if dice.chance(0.7) else 30)
            if dice.chance(0.5):
                x, y = y, x
            if sign == "/":
                x, y = x * y, x
        if held_out == reserved(x, y) or (held_out and sign in "*/"):
            return x, y


def result(x: int, sign: str, y: int) -> int:
    if sign == "/":
        return x // y
    return {"+": x + y, "-": x - y, "*": x * y}[sign]


def equation(x: int, sign: str, y: int) -> str:
    return f"{x} {sign} {y} = {result(x, sign, y)}"


def calculation(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    sign = dice.weighted([(6, "+"), (5, "-"), (4, "*"), (2, "/")])
    x, y = operands(dice, sign, held_out)
    written = dice.weighted([
        (5, f"{x} {sign} {y}"), (2, f"{x}{sign}{y}"), (3, f"{x} {dice.pick(SIGNS[sign])} {y}"), (1, f"{x} x {y}" if sign == "*" else f"{x} {sign} {y}"),
    ])
    total = result(x, sign, y)
    turns = [Turn(ask(dice, CALCULATE, sum=written), equation(x, sign, y) + ".", f"{total}.")]
    while dice.chance(0.25) and 0 <= total <= 900:
        sign = dice.pick("+-") if total > 12 else dice.pick("+*")
        y = dice.number(1, 12) if sign == "*" else dice.number(1, max(total, 1) if sign == "-" else min(99, 999 - total))
        if held_out == reserved(total, y):
            turns.append(Turn(ask(dice, CHAINED, word=dice.pick((SIGNS[sign][0], sign)), b=y), equation(total, sign, y) + ".",
                              f"{result(total, sign, y)}."))
            total = result(total, sign, y)
    return turns


def word_problem(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    sign, patterns = dice.pick((("+", GAIN), ("-", LOSS), ("*", GROUPS), ("/", SHARES)))
    while True:
        x, y = operands(dice, sign, held_out)
        if x > y > 1 and x < 200 and (sign != "*" or x > 1):
            break
    name, other = dice.some(PEOPLE, 2)
    total = result(x, sign, y)
    things = dice.pick(THINGS)
    one = things if things in ("fish", "sheep") else things[:-1]
    question = ask(dice, patterns, name=name, other=other, x=x, y=y, things=things)
    return [Turn(question, f"{equation(x, sign, y)}, so the answer is {total} {things if total != 1 else one}.", f"{total}.")]


def comparison(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    x, y = dice.number(0, 999), dice.number(0, 999)
    if x == y:
        y += 1
    larger = dice.chance(0.5)
    chosen, word = (max(x, y), "larger") if larger else (min(x, y), "smaller")
    question = ask(dice, COMPARE if larger else LESS, x=x, y=y)
    return [Turn(question, f"{chosen} is {word} than {min(x, y) if larger else max(x, y)}.", f"{chosen}.")]


def chain(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    """Three numbers, from left to right, with the step between."""
    while True:
        x, y, z = dice.number(1, 99), dice.number(1, 99), dice.number(1, 50)
        first, second = dice.pick("+-"), dice.pick("+-")
        middle = result(x, first, y)
        if middle >= 0 and (held_out or not (reserved(x, y) or reserved(middle, z))):
            break
    total = result(middle, second, z)
    return [Turn(ask(dice, CALCULATE, sum=f"{x} {first} {y} {second} {z}"),
                 f"{equation(x, first, y)}, and {equation(middle, second, z)}.", f"{total}.")]


def prime(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    x = dice.number(2, 50)
    divisor = next(d for d in range(2, x + 1) if x % d == 0)
    reason = f"Yes, {x} is a prime number." if divisor == x else f"No, {equation(divisor, '*', x // divisor)}."
    return [Turn(ask(dice, ("Is {x} [a |]prime[| number]?", "Is the number {x} prime?"), x=x), reason, reason.split(",")[0] + ".")]


def single(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    """Questions about one number: parity, double, half, square, neighbours."""
    x = dice.number(1, dice.pick((20, 99, 499)))
    kind = dice.pick(("even", "odd", "double", "half", "square", "after", "before"))
    if kind in ("even", "odd"):
        is_even = x % 2 == 0
        truth = is_even == (kind == "even")
        word = "even" if is_even else "odd"
        return [Turn(ask(dice, ("Is {x} [an |]" + kind + "[ number|]?", "Is the number {x} " + kind + "?"), x=x),
                     f"{'Yes' if truth else 'No'}, {x} is {word}.", "Yes." if truth else "No.")]
    if kind == "half":
        x *= 2
    if kind == "square":
        x = dice.number(1, 20)
    value, what = {
        "double": (2 * x, f"Double {x}"), "half": (x // 2, f"Half of {x}"), "square": (x * x, f"The square of {x}"),
        "after": (x + 1, f"After {x}"), "before": (x - 1, f"Before {x}"),
    }[kind]
    patterns = {
        "double": ("What is double {x}?", "What is [twice|two times] {x}?", "Double {x}[|.]", "What is the double of {x}?"),
        "half": ("What is half of {x}?", "[Halve|Half of] {x}[|.]", "How much is half of {x}?"),
        "square": ("What is {x} squared?", "What is the square of {x}?", "Square {x}[|.]"),
        "after": ("[What|Which] number comes after {x}?", "What comes after {x}?", "What is the next number after {x}?"),
        "before": ("[What|Which] number comes before {x}?", "What comes before {x}?"),
    }[kind]
    verb = "comes" if kind in ("after", "before") else "is"
    return [Turn(ask(dice, patterns, x=x), f"{what} {verb} {value}.", f"{value}.")]


def counting(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    start = 1 if dice.chance(0.5) else dice.number(2, 90)
    stop = start + dice.number(3, 12)
    step = -1 if dice.chance(0.25) else 1
    numbers = list(range(start, stop + 1))[::step]
    patterns = ["Count from {x} to {y}[|.|, please.]", "[Can|Could] you count from {x} to {y}?", "Please count from {x} to {y}."]
    if start == 1 and step == 1:
        patterns += ["Count to {y}[|.|, please.]", "[Can|Could] you count to {y}?"]
    if step == -1:
        patterns += ["Count [down|backwards] from {x} to {y}[|.]"]
    return [Turn(ask(dice, patterns, x=numbers[0], y=numbers[-1]), ", ".join(map(str, numbers)) + ".")]


def too_large(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    """Problems beyond the model, which it says so of."""
    sign = dice.pick("+-*/")
    x, y = dice.number(10_000, 9_999_999), dice.number(1_000, 999_999)
    if sign == "*" and dice.chance(0.5):
        x, y = dice.number(101, 999), dice.number(101, 999)
    question = ask(dice, CALCULATE, sum=f"{x} {sign} {y}")
    return [Turn(question, "Those numbers are too large for me. I am good at numbers below one thousand.", "Too large for me.")]


def quiz(dice: Dice, talk: Talk, held_out: bool) -> list[Turn]:
    """The model sets a problem, the user answers, the model checks."""
    sign = dice.pick("+-")
    while True:
        x, y = operands(dice, sign, held_out)
        if y <= x <= 99:
            break
    total = result(x, sign, y)
    right = dice.chance(0.6)
    guess = total if right else total + dice.pick((-10, -2, -1, 1, 2, 10))
    verdict = f"Yes, that is right: {equation(x, sign, y)}." if right else f"Not quite: {equation(x, sign, y)}."
    return [
        Turn(ask(dice, ("[Give|Ask] me a [number|maths|math] [problem|question|puzzle][|.|, please.]", "Quiz me[|.|!]", "I want a number problem[|.]", "Test me[|.|!]",
                        "Give me a sum[| to solve].", "Ask me something[|.]")), f"What is {x} {sign} {y}?"),
        Turn(ask(dice, ("{guess}", "{guess}.", "It is {guess}[|.]", "[The answer is|I think it is|I say] {guess}[|.]", "{guess}?", "Is it {guess}?"), guess=guess),
             verdict, "Right." if right else f"No, {total}."),
    ]


def arithmetic(dice: Dice, talk: Talk, held_out: bool = False) -> list[Turn]:
    kind = dice.weighted([(14, calculation), (5, word_problem), (3, comparison), (3, single), (2, chain), (1, prime), (2, counting), (1, too_large), (2, quiz)])
    return kind(dice, talk, held_out)
