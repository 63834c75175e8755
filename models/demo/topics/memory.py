"""What the user says of themselves, and questions about it later in the conversation."""

from __future__ import annotations

from typing import NamedTuple

from topics.language import Dice, Talk, Turn, ask

PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate", "Liam", "Maria", "Noah", "Olga",
    "Paul", "Rosa", "Sam", "Tina", "Tom", "Uma", "Victor", "Will", "Yuki", "Zara", "Alex", "Bella", "Carl", "Diana", "Eric",
    "Fatima", "George", "Hana", "Igor", "Julia", "Karim", "Lena", "Mia", "Nils", "Omar", "Peter", "Ravi", "Sara", "Tariq",
    "Vera", "Walter", "Xenia", "Yusuf", "Alice", "Bob", "John", "Jane", "Lucy", "Mark", "Simon", "Linda", "Ali", "Chen",
)
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "turquoise")
TOWNS = ("Berlin", "Paris", "Rome", "London", "Madrid", "Vienna", "Oslo", "Lima", "Tokyo", "Boston", "Cairo", "Delhi", "Sydney",
         "Toronto", "Prague", "Dublin", "Lisbon", "Athens", "Chicago", "Hamburg", "Zurich", "Bern", "Munich", "Seoul")
PETS = ("dog", "cat", "rabbit", "parrot", "hamster", "horse", "turtle", "mouse", "goldfish", "guinea pig")
PET_NAMES = ("Rex", "Bello", "Minka", "Snowy", "Coco", "Lucky", "Daisy", "Tiger", "Molly", "Rocky", "Fluffy", "Pepper", "Ginger")
FOODS = ("pizza", "soup", "bread", "pasta", "apples", "rice", "cheese", "pancakes", "salad", "chocolate", "noodles", "bananas")
SYLLABLES = ("ka", "lo", "mi", "ra", "ven", "tor", "el", "sha", "dun", "bri", "no", "fi", "ja", "pel", "us", "an", "dri", "mo", "zi", "ga")


class Fact(NamedTuple):
    told: tuple[str, ...]
    noted: tuple[str, ...]
    asked: tuple[str, ...]
    recalled: str
    unknown: str


FACTS = {
    "name": Fact(
        ("My name is {value}[|.|!]", "I am {value}[|.|!]", "I'm {value}[|.]", "[Hi|Hello|Hey], [I am|I'm|my name is] {value}[|.|!]", "[Please |]call me {value}[|.]",
         "You can call me {value}.", "People call me {value}.", "My friends call me {value}.", "{value} is my name.", "Hello! My name is {value}. What is yours?"),
        ("Nice to meet you, {value}!", "Hello, {value}! How can I help you?", "Hi {value}! It is nice to meet you."),
        ("What is my name?", "What's my name?", "Do you [know|remember] my name?", "Who am I?", "[Can|Could] you tell me my name?", "What am I called?", "My name?",
         "Did I tell you my name?", "Do you remember who I am?", "Say my name[|.]", "What was my name[| again]?"),
        "Your name is {value}.", "You have not told me your name yet."),
    "colour": Fact(
        ("My favourite colour is {value}[|.]", "My favorite color is {value}[|.]", "I like {value} best.", "The colour I like most is {value}.", "I love the colour {value}[|.|!]"),
        ("{value} is a beautiful colour. I will remember it.", "I will remember that you like {value}."),
        ("What is my favourite colour?", "What's my favorite color?", "Which colour do I like[| best| most]?", "Do you remember my favourite colour?", "My favourite colour?"),
        "Your favourite colour is {value}.", "You have not told me your favourite colour yet."),
    "town": Fact(
        ("I live in {value}[|.]", "I am from {value}[|.]", "I come from {value}[|.]", "My home is in {value}.", "I'm from {value}[|.|!]", "My home town is {value}."),
        ("{value} must be a nice place. I will remember it.", "I will remember that your home is {value}."),
        ("Where do I live?", "Where am I from?", "Which town [do I live in|am I from]?", "Do you remember where I [live|come from]?", "Where is my home?", "What is my home town?"),
        "Your home is {value}.", "You have not told me where you live."),
    "pet": Fact(
        ("I have a {value}[|.]", "My pet is a {value}[|.]", "I own a {value}[|.]", "There is a {value} at my home.", "I have a pet. It is a {value}."),
        ("How nice! I will remember your {value}.", "A {value} is a good friend."),
        ("[What|Which] pet do I have?", "Do you remember my pet?", "What is my pet?", "Which animal do I have?", "What kind of pet do I have?"),
        "You have a {value}.", "You have not told me about a pet."),
    "petname": Fact(
        ("My {pet} is called {value}[|.]", "My {pet}'s name is {value}[|.]", "I have a {pet} called {value}[|.]", "My {pet} is {value}[|.]", "My pet is called {value}[|.]", "My pet's name is {value}[|.]", "The name of my pet is {value}[|.]", "I call my pet {value}."),
        ("{value} is a lovely name for a pet.", "I will remember the name {value}."),
        ("What is my {pet} called?", "What is the name of my {pet}?", "What is my {pet}'s name?", "Do you remember the name of my {pet}?", "What is my pet called?", "What is the name of my pet?", "What is my pet's name?", "Do you remember my pet's name?", "How is my pet called?"),
        "Your pet is called {value}.", "You have not told me the name of your pet."),
    "food": Fact(
        ("My favourite food is {value}[|.]", "I like to eat {value}[|.]", "I love {value}[|.|!]", "My favorite food is {value}.", "I eat {value} every day."),
        ("{value}, how tasty! I will remember it.", "I will remember that you like {value}."),
        ("What is my favourite food?", "What do I like to eat?", "What's my favorite food?", "Do you remember my favourite food?", "Which food do I like?"),
        "Your favourite food is {value}.", "You have not told me your favourite food."),
    "age": Fact(
        ("I am {value} years old[|.]", "I'm {value} years old[|.]", "My age is {value}[|.]", "I turned {value} this year.", "I am {value} now."),
        ("{value} is a good age. I will remember it.", "Good to know that you are {value} years old."),
        ("How old am I?", "What is my age?", "Do you remember my age?", "Do you know how old I am?", "My age?"),
        "You are {value} years old.", "You have not told me your age."),
    "number": Fact(
        ("My [lucky|favourite] number is {value}[|.]", "Remember the number {value}[|.|, please.]", "Please remember {value}.", "Keep the number {value} in mind.", "My number is {value}."),
        ("I will remember the number {value}.", "All right, your number is {value}."),
        ("What is my [lucky |favourite |]number?", "Which number did I [tell|give] you?", "Do you remember my number?", "What was the number[| again]?", "My number?"),
        "Your number is {value}.", "You have not told me a number."),
}


def person(dice: Dice) -> str:
    """A common first name, or now and then an invented one, so that the model copies rather than recites."""
    if dice.chance(0.75):
        return dice.pick(PEOPLE)
    return "".join(dice.some(SYLLABLES, dice.number(2, 3))).capitalize()


def _value(dice: Dice, kind: str) -> str:
    if kind == "name":
        return person(dice)
    if kind == "age":
        return str(dice.number(5, 99))
    if kind == "number":
        return str(dice.number(1, 999))
    if kind == "petname" and dice.chance(0.5):
        return person(dice)
    return dice.pick({"colour": COLOURS, "town": TOWNS, "pet": PETS, "petname": PET_NAMES, "food": FOODS}[kind])


def tell(dice: Dice, talk: Talk, kind: str) -> Turn:
    """The user says something of themselves; `talk` remembers it."""
    fact, value = FACTS[kind], _value(dice, kind)
    talk.facts[kind] = value
    pet = talk.pet = dice.pick(PETS) if kind == "petname" else talk.pet
    if kind == "pet":
        pet = talk.pet = value
    answer = dice.pick(fact.noted).format(value=value)
    return Turn(ask(dice, fact.told, value=value, pet=pet), answer[0].upper() + answer[1:], f"Hello, {value}!" if kind == "name" else "Noted.")


def recall(dice: Dice, talk: Talk, kind: str) -> Turn:
    """The user asks for it back."""
    fact = FACTS[kind]
    value = talk.facts.get(kind)
    if value is None:
        return Turn(ask(dice, fact.asked, pet=talk.pet), fact.unknown, "You have not told me.")
    return Turn(ask(dice, fact.asked, pet=talk.pet), fact.recalled.format(value=value), value[0].upper() + value[1:] + ".")


def memory(dice: Dice, talk: Talk) -> list[Turn]:
    """Tell something new, or ask for something told earlier (now and then for what was never told)."""
    known = sorted(talk.facts)
    if known and dice.chance(0.6):
        return [recall(dice, talk, dice.pick(known))]
    kind = dice.pick(sorted(FACTS) + ["name"] * 5)
    if dice.chance(0.2):
        return [recall(dice, talk, kind)]
    turns = [tell(dice, talk, kind)]
    return turns + [recall(dice, talk, kind)] if dice.chance(0.25) else turns
