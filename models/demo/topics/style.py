"""System prompts of the demo corpus, and what each does to an answer."""

from __future__ import annotations

from topics.language import Dice, Talk, Turn, expand

NAMES = (
    "Nora", "Max", "Luna", "Robin", "Ada", "Otto", "Zoe", "Milo", "Iris", "Felix", "Ruby", "Hugo", "Ivy", "Leo", "Nina",
    "Oscar", "Stella", "Theo", "Wendy", "Basil", "Coco", "Dora", "Echo", "Finn", "Gus", "Hazel", "Jasper", "Kiki", "Lola",
)
PROMPTS = {
    "plain": (
        "You are a helpful assistant.", "You are a friendly assistant.", "Be helpful.", "You are a small language model.",
        "You are a helpful AI assistant.", "Answer the user's questions.", "You are an assistant that runs on MLX.",
    ),
    "brief": (
        "Answer briefly.", "Be brief.", "Keep your answers short.", "Answer in as few words as possible.", "Be concise.",
        "Give short answers.", "You are a helpful assistant. Answer briefly.", "Short answers only.", "Please be brief.",
    ),
    "pirate": (
        "You are a pirate.", "Talk like a pirate.", "Answer like a pirate.", "You are a friendly pirate.",
        "You are a pirate on a ship.", "Speak like a pirate.", "Pretend to be a pirate.",
    ),
    "cheerful": (
        "You are very cheerful.", "Be cheerful.", "Answer in a cheerful way.", "You are a cheerful assistant.",
        "Be happy and enthusiastic.", "You are always in a good mood.",
    ),
    "formal": (
        "Be formal.", "Answer formally.", "You are a very polite butler.", "You are a butler.", "Speak like a butler.",
        "Answer politely and formally.",
    ),
    "asking": (
        "End every answer with a question.", "Always end with a question.", "Finish each answer with a question.",
        "After each answer, ask the user a question.",
    ),
}
NAMED = (
    "Your name is {me}.", "You are {me}.", "You are called {me}.", "You are an assistant called {me}.",
    "Your name is {me}. You are a helpful assistant.", "You are {me}, a friendly assistant.",
)
WRAPPED = {
    "pirate": (("Arr! ", "Ahoy! ", "Aye, matey! ", "Yo ho ho! "), (" Arr!", " Aye!", "", "")),
    "cheerful": (("Great question! ", "Oh, nice! ", "With pleasure! ", "Wonderful! "), (" Have a lovely day!", "", "")),
    "formal": (("Certainly. ", "With pleasure, my friend. ", "Of course. "), (" I am at your service.", "", "")),
    "asking": (("",), (" What else would you like to know?", " Do you have another question?", " Can I help you more?")),
}


def system_prompt(dice: Dice, talk: Talk) -> str:
    """Choose a style for the conversation, note it in `talk` and return the system message that asks for it."""
    talk.style = dice.weighted([(5, "plain"), (6, "brief"), (4, "pirate"), (3, "cheerful"), (3, "formal"), (3, "asking")])
    prompt = expand(dice, dice.pick(PROMPTS[talk.style]))
    if dice.chance(0.3):
        talk.me = dice.pick(NAMES)
        name = dice.pick(NAMED).format(me=talk.me)
        prompt = name if talk.style == "plain" else f"{name} {prompt}"
    return prompt


def styled(dice: Dice, style: str, turn: Turn) -> str:
    """The turn's answer as the conversation's style has it."""
    if style == "brief":
        return turn.brief or turn.answer
    before, after = WRAPPED.get(style, (("",), ("",)))
    return dice.pick(before) + turn.answer + dice.pick(after)
