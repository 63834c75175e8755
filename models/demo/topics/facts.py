"""Facts of everyday life: the calendar, colours, animals, opposites, shapes, the alphabet and nature."""

from __future__ import annotations

from topics.language import Dice, Item, Talk, Turn, a, ask, discuss

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = ("spring", "summer", "autumn", "winter")
SEASON_MONTHS = {"spring": "March, April and May", "summer": "June, July and August", "autumn": "September, October and November",
                 "winter": "December, January and February"}
SEASON_NOTES = {"spring": "In spring the flowers wake up and the days grow longer.", "summer": "In summer the days are long and warm.",
                "autumn": "In autumn the leaves turn red and fall.", "winter": "In winter the days are short and snow may fall."}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")
MIXES = (("blue", "yellow", "green"), ("red", "yellow", "orange"), ("red", "blue", "purple"), ("black", "white", "grey"), ("red", "white", "pink"))
COLOURED = {"the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "blood": "red", "coal": "black", "a lemon": "yellow", "milk": "white",
            "a tomato": "red", "an orange": "orange", "a leaf": "green", "chocolate": "brown", "the sun": "yellow", "the sea": "blue", "a strawberry": "red"}
ANIMALS = {  # name: (legs, young, home, food, sound)
    "dog": (4, "puppy", "house", "meat", "bark"), "cat": (4, "kitten", "house", "fish", "meow"), "cow": (4, "calf", "stable", "grass", "moo"),
    "horse": (4, "foal", "stable", "hay", "neigh"), "sheep": (4, "lamb", "meadow", "grass", "baa"), "pig": (4, "piglet", "farm", "corn", "oink"),
    "goat": (4, "kid", "farm", "leaves", "bleat"), "duck": (2, "duckling", "pond", "plants", "quack"), "hen": (2, "chick", "farm", "corn", "cluck"),
    "lion": (4, "cub", "savanna", "meat", "roar"), "bear": (4, "cub", "forest", "berries", "growl"), "wolf": (4, "pup", "forest", "meat", "howl"),
    "fox": (4, "cub", "forest", "mice", "bark"), "frog": (4, "tadpole", "pond", "flies", "croak"), "owl": (2, "owlet", "forest", "mice", "hoot"),
    "bee": (6, "larva", "hive", "nectar", "buzz"), "mouse": (4, "pup", "hole", "seeds", "squeak"), "rabbit": (4, "kit", "burrow", "carrots", "squeak"),
    "spider": (8, "spiderling", "web", "flies", ""), "ant": (6, "larva", "nest", "seeds", ""), "elephant": (4, "calf", "savanna", "leaves", "trumpet"),
    "snake": (0, "hatchling", "desert", "mice", "hiss"), "penguin": (2, "chick", "ice", "fish", "squawk"), "deer": (4, "fawn", "forest", "leaves", "bellow"),
    "whale": (0, "calf", "sea", "krill", "sing"), "beetle": (6, "larva", "wood", "leaves", ""), "crow": (2, "chick", "nest", "seeds", "caw"),
    "squirrel": (4, "kit", "tree", "nuts", "chatter"), "monkey": (4, "infant", "jungle", "bananas", "chatter"), "camel": (4, "calf", "desert", "grass", "grunt"),
}
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("old", "young"), ("happy", "sad"), ("light", "dark"), ("heavy", "light"), ("wet", "dry"),
    ("open", "closed"), ("full", "empty"), ("hard", "soft"), ("early", "late"), ("near", "far"), ("strong", "weak"), ("rich", "poor"), ("loud", "quiet"), ("clean", "dirty"),
    ("day", "night"), ("good", "bad"), ("left", "right"), ("up", "down"), ("inside", "outside"), ("first", "last"), ("easy", "difficult"), ("thick", "thin"),
    ("high", "low"), ("yes", "no"), ("begin", "end"), ("north", "south"), ("east", "west"), ("buy", "sell"), ("win", "lose"), ("sweet", "sour"), ("deep", "shallow"),
)
SHAPES = {"triangle": 3, "square": 4, "rectangle": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}
COUNTS = (
    Item(("How many days [are in|does] a week[| have]?",), "A week has seven days.", "Seven."),
    Item(("How many days [are in|does] a year[| have]?",), "A year has 365 days, and a leap year has 366.", "365."),
    Item(("How many seasons are there?", "How many seasons does a year have?", "[Name|List] the [four |]seasons[|.]", "What are the [four |]seasons?"),
         "There are four seasons: spring, summer, autumn and winter.", "Spring, summer, autumn and winter."),
    Item(("How many months are there?", "How many months does a year have?"), "A year has twelve months.", "Twelve."),
    Item(("[Name|List] the days of the week[|.]", "What are the days of the week?", "Which days does a week have?"), "The days are " + ", ".join(DAYS[:-1]) + " and Sunday.", ", ".join(DAYS) + "."),
    Item(("[Name|List] the months[| of the year][|.]", "What are the months[| of the year]?", "Name all months[|.]"), "The months are " + ", ".join(MONTHS[:-1]) + " and December.", ", ".join(MONTHS) + "."),
    Item(("How many letters are in the alphabet?", "How many letters does the alphabet have?"), "The English alphabet has 26 letters.", "26."),
    Item(("[Say|Recite|Tell me] the alphabet[|.]", "What is the alphabet?"), "a b c d e f g h i j k l m n o p q r s t u v w x y z", ""),
    Item(("[Name|List] the colours of the rainbow[|.]", "What colours does a rainbow have?", "Which colors are in a rainbow?"),
         "A rainbow is red, orange, yellow, green, blue, indigo and violet.", "Red, orange, yellow, green, blue, indigo, violet."),
    Item(("How many fingers does a hand have?", "How many fingers are on a hand?"), "A hand has five fingers.", "Five."),
    Item(("How many wheels does a [car|truck] have?", "How many wheels are on a car?"), "A car has four wheels.", "Four."),
    Item(("How many wheels does a [bicycle|bike] have?", "How many wheels are on a bike?"), "A bicycle has two wheels.", "Two."),
    Item(("When does water freeze?", "At what temperature does water freeze?"), "Water freezes at 0 degrees Celsius.", "At 0 degrees Celsius."),
    Item(("When does water boil?", "At what temperature does water boil?"), "Water boils at 100 degrees Celsius.", "At 100 degrees Celsius."),
    Item(("Where does the sun rise?", "Where does the sun come up?"), "The sun rises in the east.", "In the east."),
    Item(("Where does the sun set?", "Where does the sun go down?"), "The sun sets in the west.", "In the west."),
    Item(("How many legs does a [chair|table] have?",), "Most of them have four legs.", "Four."),
    Item(("What day is it[| today]?", "What is the date[| today]?", "What time is it?", "What year is it?", "Which month is it[| now]?", "What is today's date?"),
         "I have no clock and no calendar, so I cannot know that.", "I have no clock."),
)


def _after(dice: Dice, ring: tuple[str, ...], what: str) -> list[Turn]:
    """The one after or before another in a ring of days, months or seasons."""
    at, step = dice.number(0, len(ring) - 1), dice.pick((1, -1))
    word = "after" if step == 1 else "before"
    other = ring[(at + step) % len(ring)]
    patterns = ["[What|Which] " + what + " [comes|is] {word} {x}?", "What comes {word} {x}?", "What is {word} {x}?", "The " + what + " {word} {x}?"]
    if what == "day":
        patterns.append("If today is {x}, what [is|day is it] tomorrow?" if step == 1 else "If today is {x}, what [was|day was] yesterday?")
    return [Turn(ask(dice, patterns, word=word, x=ring[at]), f"{other[0].upper() + other[1:]} comes {word} {ring[at]}.", f"{other[0].upper() + other[1:]}.")]


def calendar(dice: Dice, talk: Talk) -> list[Turn]:
    kind = dice.number(0, 5)
    if kind == 0:
        return _after(dice, DAYS, "day")
    if kind == 1:
        return _after(dice, MONTHS, "month")
    if kind == 2:
        return _after(dice, SEASONS, "season")
    if kind == 3:
        at = dice.number(0, 11)
        note = " In a leap year it has 29." if at == 1 else ""
        return [Turn(ask(dice, ("How many days does {m} have?", "How many days are in {m}?", "How long is {m}?"), m=MONTHS[at]),
                     f"{MONTHS[at]} has {LENGTHS[at]} days.{note}", f"{LENGTHS[at]}.")]
    if kind == 4:
        ring, what = dice.pick(((DAYS, "day of the week"), (MONTHS, "month[| of the year]")))
        at = dice.number(0, len(ring) - 1)
        return [Turn(ask(dice, ("[What|Which] is the {nth} " + what + "?", "The {nth} " + what + "?"), nth=ORDINALS[at]),
                     f"{ring[at]} is the {ORDINALS[at]} {what.split('[')[0]}.", f"{ring[at]}.")]
    season = dice.pick(SEASONS)
    if dice.chance(0.5):
        return [Turn(ask(dice, ("Which months are in {s}?", "When is {s}?", "Which months belong to {s}?"), s=season),
                     f"{season.capitalize()} is in {SEASON_MONTHS[season]}, in the north.", f"{SEASON_MONTHS[season]}.")]
    return [Turn(ask(dice, ("What is {s}[| like]?", "Tell me about {s}[|.]", "What happens in {s}?", "Describe {s}[|.]"), s=season), SEASON_NOTES[season])]


def colours(dice: Dice, talk: Talk) -> list[Turn]:
    if dice.chance(0.5):
        x, y, mixed = dice.pick(MIXES)
        if dice.chance(0.5):
            x, y = y, x
        return [Turn(ask(dice, ("What do {x} and {y} make?", "What [colour|color] do you get if you mix {x} and {y}?", "Mix {x} and {y}[|.]", "{x} and {y} make what colour?",
                                "What is {x} mixed with {y}?"), x=x, y=y), f"{x.capitalize()} and {y} make {mixed}.", f"{mixed.capitalize()}.")]
    thing = dice.pick(tuple(COLOURED))
    return [Turn(ask(dice, ("What [colour|color] is {x}?", "Which colour does {x} have?", "What is the [colour|color] of {x}?"), x=thing),
                 f"{thing.capitalize()} is {COLOURED[thing]}.", f"{COLOURED[thing].capitalize()}.")]


def animals(dice: Dice, talk: Talk) -> list[Turn]:
    name = dice.pick(tuple(ANIMALS))
    legs, young, home, food, sound = ANIMALS[name]
    kind = dice.number(0, 5)
    if kind == 0:
        count = f"{legs} legs" if legs else "no legs"
        return [Turn(ask(dice, ("How many legs does {x} have?", "How many legs has {x}?", "Does {x} have legs?"), x=a(name)), f"{a(name).capitalize()} has {count}.", f"{legs or 'None'}.")]
    if kind == 1:
        return [Turn(ask(dice, ("What is a baby {n} called?", "What is a young {n}?", "What is the name for a baby {n}?", "What do you call a young {n}?"), n=name),
                     f"A young {name} is called {a(young)}.", f"{a(young).capitalize()}.")]
    if kind == 2:
        preposition = "on the" if home in ("farm", "savanna", "ice", "meadow") else "in the" if home in ("forest", "sea", "desert", "jungle") else "in " + a(home)[:-len(home) - 1]
        where = f"{preposition} {home}"
        return [Turn(ask(dice, ("Where does {x} live?", "What is the home of {x}?", "Where do I find {x}?"), x=a(name)), f"{a(name).capitalize()} lives {where}.", f"{where.capitalize()}.")]
    if kind == 3:
        return [Turn(ask(dice, ("What does {x} eat?", "What is the food of {x}?", "What do I feed {x}?"), x=a(name)), f"{a(name).capitalize()} likes to eat {food}.", f"{food.capitalize()}.")]
    if kind == 4 and sound:
        return [Turn(ask(dice, ("What sound does {x} make?", "What noise does {x} make?", "What does {x} say?", "How does {x} sound?"), x=a(name)),
                     f"The sound of {a(name)} is: {sound}!", f"{sound.capitalize()}!")]
    legs_note = f"It has {legs} legs" if legs else "It has no legs"
    return [Turn(ask(dice, ("What is {x}?", "Tell me about {x}[|.]", "What do you know about {x}?", "Describe {x}[|.]", "Tell me something about {x}."), x=a(name)),
                 f"{a(name).capitalize()} is an animal. {legs_note} and likes to eat {food}.", "An animal.")]


def opposites(dice: Dice, talk: Talk) -> list[Turn]:
    pair = dice.pick(OPPOSITES)
    x, y = pair if pair[1] == "light" or dice.chance(0.5) else pair[::-1]
    if x == "light":
        y = "dark"
    return [Turn(ask(dice, ("What is the opposite of {x}?", "[Tell|Give] me the opposite of {x}[|.]", "Opposite of {x}[|?]", "The opposite of {x}?", "What's the opposite of {x}?"), x=x),
                 f"The opposite of {x} is {y}.", f"{y.capitalize()}.")]


def shapes(dice: Dice, talk: Talk) -> list[Turn]:
    shape = dice.pick(tuple(SHAPES))
    return [Turn(ask(dice, ("How many [sides|corners] does {x} have?", "What is {x}?", "How many sides are in {x}?"), x=a(shape)),
                 f"{a(shape).capitalize()} is a shape with {SHAPES[shape]} sides.", f"{SHAPES[shape]} sides.")]


def facts(dice: Dice, talk: Talk) -> list[Turn]:
    kind = dice.weighted([(4, calendar), (3, colours), (5, animals), (3, opposites), (1, shapes), (4, None)])
    return kind(dice, talk) if kind else discuss(dice, COUNTS)
