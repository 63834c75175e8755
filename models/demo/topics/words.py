"""Play with words: spelling, rhyming, repeating, the letters of the alphabet, lists."""

from __future__ import annotations

import string

from topics.facts import ANIMALS
from topics.language import Dice, Talk, Turn, ask
from topics.memory import COLOURS, FOODS, PETS

SIMPLE = ("sun", "moon", "star", "tree", "house", "water", "fire", "stone", "bread", "apple", "green", "happy", "small", "night", "model", "norm", "weight", "kernel",
          "table", "chair", "river", "cloud", "flower", "garden", "window", "door", "friend", "letter", "number", "story", "music", "paper", "light", "summer", "winter")
SPELLABLE = SIMPLE + tuple(ANIMALS) + COLOURS[:11]
RHYMING = (("cat", "hat"), ("dog", "fog"), ("mouse", "house"), ("tree", "bee"), ("moon", "spoon"), ("star", "car"), ("sun", "fun"), ("rain", "train"), ("night", "light"),
           ("day", "play"), ("snow", "crow"), ("bear", "chair"), ("fox", "box"), ("king", "ring"), ("cake", "lake"), ("goat", "boat"), ("bell", "shell"), ("red", "bed"),
           ("sky", "fly"), ("tall", "ball"), ("cold", "gold"), ("hill", "mill"), ("book", "hook"), ("norm", "storm"), ("fold", "old"), ("gain", "train"))
PHRASES = ("good morning", "I like apples", "the sky is blue", "hello world", "fold the gains", "my cat is asleep", "small is beautiful", "we are friends", "one two three",
           "the fox is quick", "tea is ready", "let us go home", "the owl sees you", "green and blue", "norms are free")
KINDS = {"animals": tuple(ANIMALS), "colours": COLOURS, "pets": PETS, "foods": FOODS}
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZES = ("mouse", "cat", "dog", "sheep", "horse", "elephant", "whale")  # smallest first


def spelling(dice: Dice, talk: Talk) -> list[Turn]:
    word = dice.pick(SPELLABLE)
    if dice.chance(0.6):
        return [Turn(ask(dice, ("[Spell|Please spell] {w}[|.]", "How do you spell {w}?", "[Can|Could] you spell {w}?", "Spell the word {w}[|.]", "How is {w} spelled?"), w=word),
                     "-".join(word) + ".")]
    if dice.chance(0.5):
        return [Turn(ask(dice, ("How many letters does {w} have?", "How many letters are in {w}?", "How long is the word {w}?", "Count the letters of {w}[|.]"), w=word),
                     f"{'-'.join(word)}: {len(word)} letters.", f"{len(word)}.")]
    return [Turn(ask(dice, ("[What|Which] is the first letter of {w}?", "What letter does {w} start with?", "{w} starts with which letter?"), w=word),
                 f"The first letter of {word} is {word[0]}.", f"{word[0]}.")]


def rhyming(dice: Dice, talk: Talk) -> list[Turn]:
    x, y = dice.pick(RHYMING)
    if dice.chance(0.5):
        x, y = y, x
    if x == "train":
        y = "rain"
    return [Turn(ask(dice, ("What rhymes with {x}?", "[Give|Tell] me a rhyme for {x}[|.]", "[Which|What] word rhymes with {x}?", "A word that rhymes with {x}[|?]", "Find a rhyme for {x}[|.]"), x=x),
                 f"{y.capitalize()} rhymes with {x}.", f"{y.capitalize()}.")]


def repeating(dice: Dice, talk: Talk) -> list[Turn]:
    phrase = dice.pick(PHRASES) if dice.chance(0.4) else " ".join(dice.some(SPELLABLE, dice.number(1, 4)))
    return [Turn(ask(dice, ("Say {p}[|.]", "Repeat after me: {p}[|.]", "Repeat: {p}", "[Please say|Can you say] {p}[|.]", 'Say "{p}"[|.]'), p=phrase), phrase[0].upper() + phrase[1:] + ".")]


def alphabet(dice: Dice, talk: Talk) -> list[Turn]:
    at, step = dice.number(1, 24), dice.pick((1, -1))
    word = "after" if step == 1 else "before"
    letter, other = string.ascii_lowercase[at], string.ascii_lowercase[at + step]
    return [Turn(ask(dice, ("[What|Which] letter comes {word} {x}?", "What comes {word} the letter {x}?", "What is the letter {word} {x}?"), word=word, x=letter),
                 f"The letter {word} {letter} is {other}.", f"{other}.")]


def listing(dice: Dice, talk: Talk) -> list[Turn]:
    kind, count = dice.pick(tuple(KINDS)), dice.number(2, 6)
    chosen = dice.some(KINDS[kind], count)
    text = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return [Turn(ask(dice, ("[Name|List|Tell me|Give me] {n} {k}[|.|, please.]", "[Can|Could] you name {n} {k}?", "I need {n} {k}[|.]"), n=dice.pick((COUNT_WORDS[count], count)), k=kind),
                 text[0].upper() + text[1:] + ".")]


def sizes(dice: Dice, talk: Talk) -> list[Turn]:
    x, y = dice.some(SIZES, 2)
    larger = max(x, y, key=SIZES.index)
    smaller = min(x, y, key=SIZES.index)
    if dice.chance(0.5):
        return [Turn(ask(dice, ("[Which|What] is [bigger|larger], a {x} or a {y}?", "Is a {x} or a {y} [bigger|larger]?"), x=x, y=y),
                     f"A{'n' if larger == 'elephant' else ''} {larger} is larger than a{'n' if smaller == 'elephant' else ''} {smaller}.", f"The {larger}.")]
    return [Turn(ask(dice, ("[Which|What] is smaller, a {x} or a {y}?", "Is a {x} or a {y} smaller?"), x=x, y=y),
                 f"A{'n' if smaller == 'elephant' else ''} {smaller} is smaller than a{'n' if larger == 'elephant' else ''} {larger}.", f"The {smaller}.")]


def number_words(dice: Dice, talk: Talk) -> list[Turn]:
    n = dice.number(0, 10)
    if dice.chance(0.5):
        return [Turn(ask(dice, ("[Write|Say] {n} as a word[|.]", "What is {n} in words?", "How do you write {n} [in words|in letters]?"), n=n), f"{COUNT_WORDS[n].capitalize()}.")]
    x, y = dice.number(0, 5), dice.number(0, 5)
    return [Turn(ask(dice, ("What is {x} [plus|and] {y}?", "How much is {x} plus {y}?", "{x} plus {y}?"), x=COUNT_WORDS[x], y=COUNT_WORDS[y]),
                 f"{COUNT_WORDS[x].capitalize()} plus {COUNT_WORDS[y]} is {COUNT_WORDS[x + y]}.", f"{COUNT_WORDS[x + y].capitalize()}.")]


def words(dice: Dice, talk: Talk) -> list[Turn]:
    kind = dice.weighted([(3, spelling), (3, rhyming), (2, repeating), (1, alphabet), (2, listing), (1, sizes), (1, number_words)])
    return kind(dice, talk)
