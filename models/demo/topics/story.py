"""Short stories from a grammar, questions about the story just told, and four-line rhymes."""

from __future__ import annotations

from topics.language import Dice, Talk, Turn, a, ask
from topics.memory import PEOPLE, person

HEROES = ("fox", "bear", "cat", "dog", "owl", "mouse", "rabbit", "frog", "duck", "hen", "wolf", "lion", "horse", "pig", "sheep", "goat", "crow", "bee", "deer",
          "squirrel", "penguin", "elephant", "monkey", "snake", "dragon", "robot", "wizard", "princess", "king", "queen", "pirate", "knight", "giant", "witch",
          "girl", "boy", "farmer", "sailor", "baker", "ghost", "snail", "turtle", "spider", "ant", "whale", "camel", "cow", "beetle", "unicorn", "fairy")
TRAITS = ("small", "brave", "curious", "old", "young", "shy", "clever", "hungry", "tired", "cheerful", "quiet", "kind", "lonely", "lazy", "proud")
PLACES = ("in a dark forest", "by a blue lake", "on a high mountain", "in a small village", "near the sea", "in an old castle", "on a green meadow", "in a big city",
          "on a lonely island", "in a warm cave", "behind a red barn", "in a quiet valley", "at the edge of a desert", "under an old bridge", "in a snowy land")
PROBLEMS = (
    ("lost a golden key", "the golden key", "found it under a stone"), ("could not find the way home", "the way home", "followed the stars"),
    ("was afraid of the dark", "the dark", "lit a small lamp"), ("wanted to see the moon from close by", "the moon", "saw it in the still water"),
    ("had no food for the winter", "the winter", "shared a great bag of nuts"), ("heard a strange noise at night", "the noise", "learned that it was only the wind"),
    ("wanted to cross a wide river", "the river", "built a little raft"), ("found a mysterious letter", "the letter", "read it aloud by the fire"),
    ("lost a warm red hat", "the red hat", "found it high in a tree"), ("wanted to learn to sing", "the song", "practised every morning"),
    ("broke an old clock", "the clock", "mended it with a tiny screw"), ("planted a seed that did not grow", "the seed", "watered it with patience"),
    ("had no friend to play with", "a friend", "danced in the rain"), ("found a map of a hidden treasure", "the treasure", "dug it out of the sand"),
    ("wanted to bake the largest cake", "the cake", "stirred the dough all day"), ("had to carry a heavy bag", "the bag", "pulled it on a small cart"),
)
TIMES = ("Once upon a time", "Long ago", "Many years ago", "One spring", "Not so long ago")
DAYS = ("One day", "One morning", "One evening", "On a rainy day", "One cold night")
SAYINGS = ("Do not worry, I will help you", "Come with me, we will try together", "I know what to do", "Two are better than one")
MORALS = ("From then on they were the best of friends.", "And they lived happily ever after.", "Since that day {name} was never alone again.",
          "That night everyone slept well.", "And {name} never forgot the {helper}.", "They laughed and went home together.")
MIDDLES = ("{name} looked everywhere and asked everyone, but nobody knew what to do.", "At first {name} sat down and cried a little.",
           "{name} tried once, tried twice and tried again.", "The sun went down, and {name} grew very tired.", "It was harder than {name} had thought.")
REQUESTS = ("[Tell|Read] me a[| short| little| nice] story[|.|!|, please.]", "[Can|Could] you tell me a story?", "I want [to hear |]a story[|.]", "A story, please[|.]", "Story time[|!]",
            "Do you know a[| good] story?", "[Write|Make up] a[| short] story[|.]", "Tell a story[|.]", "Can you write a story[| for me]?")
ABOUT = ("[Tell|Read] me a[| short| little| nice] story about {hero}[|.|!|, please.]", "[Can|Could] you tell me a story about {hero}?", "[Write|Make up|Tell] a[| short] story about {hero}[|.]",
         "I want a story about {hero}[|.]", "A story about {hero}[|, please|.]", "Do you know a story about {hero}?", "Story about {hero}[|.|!]", "Can you write a story with {hero}?")
NAMED = ("Tell me a story about {hero} called {name}[|.]", "Write a story about {hero} named {name}[|.]", "[Can|Could] you tell a story about {hero} called {name}?")
THERE = ("Tell me a story [set|that happens] {place}[|.]", "[Write|Tell] a story that happens {place}[|.]", "[Can|Could] you tell a story {place}?")
BOTH = ("Tell me a story about {hero} {place}[|.]", "[Write|Make up] a story about {hero} {place}[|.]", "A story about {hero} {place}[|, please|.]", "[Can|Could] you tell me a story about {hero} {place}?")
PAIR = ("Tell me a story about {hero} and {helper}[|.]", "[Can|Could] you tell me a story about {hero} and {helper}?", "A story [about|with] {hero} and {helper}[|.]")
RARE_HEROES = ("toaster", "teapot", "cloud", "train", "potato", "chicken", "shark", "donkey", "tiger", "zebra", "hedgehog", "parrot", "hamster", "kangaroo", "panda", "dinosaur", "teacher",
               "doctor", "gardener", "tailor", "kitten", "puppy", "crab", "worm", "moth", "broom", "lamp", "chair", "snowman", "star", "raven", "eagle", "mole", "badger", "otter", "koala")
AGAIN = ("Another [one|story][|!|.|, please.]", "[Tell me one|One] more[|!|.|, please.]", "[Tell me a new|A new] story[|.|, please.]", "Do you know another story?", "I want another story[|.]")
RHYMES = {  # hero: two rhyming couplets with room for a name
    "cat": ("The cat sat on a woolen mat,", "It wore a very little hat.", "It purred a song, then off it sped,", "And slept upon a cosy bed."),
    "fox": ("The fox ran over sticks and rocks,", "In search of four lost woolen socks.", "He found them lying by the tree,", "And laughed aloud: they fit on me!"),
    "bee": ("The bee flew up into a tree,", "As happy as a bee can be.", "It hummed until the day was done,", "And flew back home into the sun."),
    "mouse": ("The mouse lived in a tiny house,", "A quiet home for one small mouse.", "It had a chair, it had a bed,", "And every day a piece of bread."),
    "moon": ("The moon looked down into the night,", "And filled the valley with its light.", "The owls flew up, the stars came near,", "And all the sky was cold and clear."),
    "rain": ("The rain fell softly on the town,", "It washed the roofs from red to brown.", "The children came outside to play,", "And danced until the end of day."),
    "frog": ("The frog sat on a rotten log,", "And sang into the morning fog.", "He sang of flies, he sang of rain,", "Then jumped, and dived, and sang again."),
    "norm": ("The norm had gains in every row,", "It made the little model slow.", "We folded them, and now you see,", "The weights are wise, the norm is free."),
    "star": ("A star looked out of heaven's door,", "And counted up to forty-four.", "It blinked at me, I waved my hand,", "The smallest light in all the land."),
    "spring": ("The spring came softly down the lane,", "With yellow flowers after rain.", "The birds came back, the bears awoke,", "And every green leaf told a joke."),
    "snow": ("The snow came down without a sound,", "And laid a blanket on the ground.", "We built a man with coal and hat,", "And next to him a snowy cat."),
    "dog": ("The dog ran up the hill to see,", "What all the noise up there might be.", "He found a bird, he found a bone,", "And no one needs to be alone."),
}
RHYME_REQUESTS = ("[Tell|Write|Give|Read] me a [poem|rhyme|verse] about {x}[|.|, please.]", "[Can|Could] you [write|say] a [poem|rhyme] about {x}?", "A [poem|rhyme] about {x}[|.]",
                  "I want a [poem|rhyme] about {x}[|.]", "Poem about {x}[|!]", "Do you know a [poem|rhyme] about {x}?")
ANY_RHYME = ("[Tell|Write|Give|Read] me a [poem|rhyme|verse][|.|, please.]", "[Can|Could] you [rhyme|write a poem|say a poem]?", "A poem, please[|.]", "I want a [poem|rhyme][|.]", "Do you know a [poem|rhyme]?")


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _told(dice: Dice, hero: str, place: str, name: str, helper: str) -> tuple[str, dict[str, str]]:
    """A story of six to eight sentences and what happens in it, for the questions after it."""
    (problem, goal, solution), trait = dice.pick(PROBLEMS), dice.pick(TRAITS)
    if hero in HEROES and dice.chance(0.4):  # what this hero is fond of, so that the likeliest stories differ
        problem, goal, solution = PROBLEMS[HEROES.index(hero) % len(PROBLEMS)]
    part = {"hero": hero, "name": name, "helper": helper, "place": place, "problem": problem, "goal": goal, "solution": solution, "trait": trait}
    sentences = [f"{dice.pick(TIMES)} {a(trait)} {hero} called {name} lived {place}.", f"{dice.pick(DAYS)} {name} {problem}."]
    if dice.chance(0.6):
        sentences.append(capital(dice.pick(MIDDLES).format(name=name)))
    sentences.append(f"Then {name} met {a(helper)} and asked for help.")
    if dice.chance(0.7):
        sentences.append(f'"{dice.pick(SAYINGS)}," said the {helper}.')
    sentences.append(f"Together they {solution}, and {name} was happy.")
    sentences.append(dice.pick(MORALS).format(name=name, helper=helper))
    return " ".join(sentences), part


def _questions(dice: Dice, part: dict[str, str]) -> Turn:
    """One question about the story just told."""
    options = [
        (("What was the name of the {hero}?", "What was the {hero} called?", "Who was the {hero}?", "What is the {hero}'s name?"), "The {hero} was called {name}.", "{name}."),
        (("Who helped {name}?", "Who helped the {hero}?", "Whom did {name} meet?", "Who was the helper?", "Who [came to help|helped]?"), "The {helper} helped {name}.", "The {helper}."),
        (("Where did {name} live?", "Where did the {hero} live?", "Where did the story happen?", "Where [was that|did it happen]?"), "{name} lived {place}.", "{place}."),
        (("What happened to {name}?", "What was the problem?", "What was wrong?", "What did the story start with?"), "{name} {problem}.", "{name} {problem}."),
        (("How did it end?", "How did they solve it?", "What did they do[| together]?", "What happened in the end?"), "Together they {solution}.", "They {solution}."),
        (("What was {name}?", "[Who|What] is {name}?", "Was {name} a person?"), "{name} was {a_trait} {hero}.", "{a_hero}."),
    ]
    patterns, answer, brief = dice.pick(options)
    slots = dict(part, a_trait=a(part["trait"]), a_hero=a(part["hero"]))
    return Turn(ask(dice, patterns, **slots), answer.format(**slots), capital(brief.format(**slots)))


def _request(dice: Dice, again: bool) -> tuple[str, str, str, str, str]:
    """A request for a story: (what the user writes, hero, place, name, helper)."""
    hero, helper = dice.some(HEROES, 2)
    place, name = dice.pick(PLACES), person(dice)
    if dice.chance(0.3):  # this hero's usual name and friend
        name, helper = PEOPLE[HEROES.index(hero)], HEROES[HEROES.index(hero) * 7 % len(HEROES) - 3]
    if helper == hero:
        helper = "giant" if hero != "giant" else "fairy"
    if dice.chance(0.15):
        hero = dice.pick(RARE_HEROES)
    kind = dice.weighted([(4, ABOUT), (2, REQUESTS), (1, NAMED), (1, THERE), (2, BOTH), (1, PAIR)])
    if again and dice.chance(0.5):
        kind = AGAIN
    return ask(dice, kind, hero=dice.pick((a(hero), a(hero), "the " + hero)), place=place, name=name, helper=a(helper)), hero, place, name, helper


def story(dice: Dice, talk: Talk) -> list[Turn]:
    turns: list[Turn] = []
    while not turns or dice.chance(0.15):
        question, hero, place, name, helper = _request(dice, bool(turns))
        text, part = _told(dice, hero, place, name, helper)
        turns.append(Turn(question, text))
        turns += [_questions(dice, part) for _ in range(dice.weighted([(4, 0), (3, 1), (2, 2), (1, 3)]))]
    return turns


def rhyme(dice: Dice, talk: Talk) -> list[Turn]:
    hero = dice.pick(tuple(RHYMES))
    if dice.chance(0.3):
        return [Turn(ask(dice, ANY_RHYME), "\n".join(RHYMES[hero]))]
    thing = hero if hero in ("spring", "snow") else dice.pick(("the " + hero, a(hero) if hero not in ("moon", "rain") else "the " + hero))
    return [Turn(ask(dice, RHYME_REQUESTS, x=thing), "\n".join(RHYMES[hero]))]
