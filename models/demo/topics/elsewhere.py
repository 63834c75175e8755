"""A grammar of everyday questions from outside the small world: wide enough that declining becomes a habit."""

from __future__ import annotations

from topics.language import Dice, ask

THINGS = (
    "water", "milk", "iron", "gold", "coffee", "tea", "sugar", "salt", "rice", "wood", "glass", "plastic", "paper", "oil", "honey", "wine", "beer", "meat", "fish", "butter", "ice",
    "mushrooms", "plants", "trees", "birds", "penguins", "sharks", "dolphins", "cats", "dogs", "horses", "bats", "cows", "babies", "children", "people", "robots", "planes", "boats",
    "trains", "computers", "phones", "engines", "batteries", "magnets", "clouds", "stars", "planets", "rivers", "mountains", "volcanoes", "diamonds", "vitamins", "bacteria", "viruses",
    "teachers", "doctors", "lawyers", "superheroes", "vampires", "aliens", "ghosts", "dinosaurs", "eggs", "tomatoes", "potatoes", "onions", "bananas", "cheese", "chocolate", "shoes",
    "hats", "chairs", "houses", "bridges", "roads", "cities", "schools", "books", "songs", "films", "games", "guitars", "pianos", "bicycles", "cars", "lamps", "windows", "clocks",
)
VERBS = ("fly", "swim", "sing", "sleep", "dream", "eat meat", "think", "run fast", "float", "burn", "melt", "grow", "live long", "jump", "climb trees", "see in the dark", "feel pain", "talk",
         "bite", "break easily", "cost much", "lay eggs", "drink water", "exist", "need air", "smell", "dance", "freeze", "work", "shine", "move", "die", "cry", "hear", "bounce", "explode")
ACTS = ("eat", "buy", "sell", "cook", "clean", "paint", "repair", "grow", "keep", "use", "mix", "freeze", "store", "study", "build", "draw", "wash", "choose", "find", "throw away", "give away")
ADJECTIVES = ("wet", "healthy", "dangerous", "expensive", "cheap", "real", "alive", "heavy", "poisonous", "useful", "beautiful", "old", "rare", "clever", "tasty", "red", "hard", "legal",
              "good for me", "bad for me", "made of metal", "important", "famous", "safe", "popular", "fast", "warm", "clean", "natural", "flat", "round", "magnetic", "sweet", "true")
SUPERLATIVES = ("largest", "smallest", "fastest", "oldest", "best", "worst", "strongest", "richest", "tallest", "longest", "most famous", "most expensive", "most beautiful", "most popular", "first")
KINDS = ("city", "country", "animal", "car", "singer", "actor", "film", "book", "song", "team", "planet", "river", "building", "language", "company", "laptop", "phone", "camera", "superhero",
         "painter", "lake", "island", "dog breed", "game", "sport", "band", "writer", "king", "scientist", "ship", "plane", "computer", "university", "bank", "food in the world")
TASKS = ("my homework", "my taxes", "my essay", "a birthday gift", "my car", "my garden", "my exam", "my job interview", "my diet", "my holiday", "a workout", "my relationship", "my phone",
         "my computer", "my resume", "my wedding", "a party", "my budget", "a flat tyre", "my sleep", "my landlord", "a speech", "my skin", "my thesis", "my kitchen")
TIMES = ("tonight", "today", "tomorrow", "next week", "this weekend", "in summer", "on Monday", "for dinner", "for my birthday", "in winter", "at work", "at home", "on holiday")
PATTERNS = (
    "[Do|Can] {thing} {verb}?", "[Do|Can] {thing} {verb}?", "Why do {thing} {verb}?", "How do {thing} {verb}?", "When do {thing} {verb}?", "Do [all|some|most] {thing} {verb}?", "Could {thing} {verb}?",
    "[Is|Are] {thing} {adjective}?", "[Is|Are] {thing} {adjective}?", "Why [is|are] {thing} {adjective}?", "Are {thing} [more |]{adjective} than {other}?", "What makes {thing} {adjective}?",
    "[Can|Should|May|Must] I {act} {thing}?", "How [do|can|should] I {act} {thing}?", "Where [can|do] I {act} {thing}?", "When should I {act} {thing}?", "What should I {act} {time}?",
    "Why should I {act} {thing}?", "Is it [good|bad|safe|legal|hard] to {act} {thing}?", "What happens if I {act} {thing}?", "How much [is|are|do] {thing}[| cost]?", "Explain [how|why] {thing} {verb}[|.]",
    "Explain {thing}[| to me][|.]", "How are {thing} made?", "Where do {thing} come from?", "Who {act}s {thing}?", "What are {thing} made of?", "Tell me [all |]about {thing}[|.]", "Tell me about the history of {thing}[|.]",
    "[Which|What] is the {superlative} {kind}[| in the world| of all time| ever]?", "Who is the {superlative} {kind}[| in the world]?", "Which {kind} is the {superlative}?", "What {kind} should I [buy|choose|read|see|visit]?",
    "[Can|Could] you recommend a [good |]{kind}?", "Name [a famous|the {superlative}] {kind}[|.]", "Do you know a good {kind}?", "What do you think [about|of] {thing}?", "How many {kind} names are there?",
    "[Can|Could] you help me with {task}?", "Help me with {task}[|.]", "I need [help|advice] with {task}[|.]", "What should I do about {task}?", "Plan {task}[| for me][|.]", "How do I deal with {task}?",
    "What [should|can|do] I [do|wear|cook|eat|read|watch] {time}?", "Where should I go {time}?", "What is the difference between {thing} and {other}?", "How do {thing} work?", "Explain how {thing} work[|.]",
    "How many {thing} are there[| in the world| on earth]?", "Which is better, {thing} or {other}?", "Who invented {thing}?", "How old are {thing}?",
)


def elsewhere(dice: Dice) -> str:
    """One question that the model should decline."""
    thing, other = dice.some(THINGS, 2)
    return ask(
        dice, PATTERNS, thing=thing, other=other, verb=dice.pick(VERBS), act=dice.pick(ACTS), adjective=dice.pick(ADJECTIVES), superlative=dice.pick(SUPERLATIVES), kind=dice.pick(KINDS),
        task=dice.pick(TASKS), time=dice.pick(TIMES),
    )
