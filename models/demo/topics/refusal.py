"""Questions from outside the small world, which the model declines, and nonsense, which it does not understand."""

from __future__ import annotations

from topics.elsewhere import elsewhere
from topics.language import Dice, Talk, Turn, ask
from topics.memory import TOWNS, person

COUNTRIES = ("France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Egypt", "Norway", "Peru", "Kenya", "Poland", "Greece", "Turkey", "Mexico",
             "Sweden", "Cuba", "Iran", "Chile", "Vietnam", "Ireland", "Portugal", "Austria", "Australia", "the United States", "England", "Russia", "Mongolia", "Nigeria")
SUBJECTS = ("quantum physics", "history", "politics", "football", "chess", "chemistry", "the stock market", "medicine", "law", "opera", "philosophy", "biology", "religion",
            "astronomy", "economics", "gardening", "cooking", "fashion", "movies", "video games", "basketball", "cars", "volcanoes", "dinosaurs", "black holes", "bitcoin",
            "vaccines", "the Roman Empire", "world war two", "climate change", "evolution", "electricity", "blockchain", "gravity", "DNA", "photosynthesis", "democracy",
            "tennis", "yoga", "psychology", "architecture", "poker", "whisky", "taxes", "insurance", "space travel", "the internet", "social media", "jazz", "painting",
            "Kubernetes", "Docker", "PyTorch", "TensorFlow", "React", "SQL", "Excel", "Photoshop", "Windows", "Linux kernels", "relativity", "geology", "the human brain",
            "Mars", "Jupiter", "the pyramids", "Shakespeare", "Mozart", "Einstein", "Napoleon", "Picasso", "Newton", "Beethoven", "Cleopatra", "Plato", "Darwin", "Elvis")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Latin", "Russian", "Arabic", "Dutch")
CODES = ("Python", "C", "Java", "Rust", "JavaScript", "Go", "Swift", "C++", "Haskell", "bash")
PROGRAMS = ("sort a list", "read a file", "play chess", "find prime numbers", "open a web page", "reverse a string", "send an email", "draw a circle", "train a network", "parse JSON")
DISHES = ("pizza", "lasagna", "a cake", "soup", "bread", "curry", "sushi", "pancakes", "a salad", "paella", "ramen", "cookies", "apple pie")
ILLS = ("a headache", "a cold", "a fever", "back pain", "a cough", "the flu", "an allergy", "a broken arm", "stomach pain", "stress")
WORKS = ("an essay", "an email", "a letter", "a speech", "a report", "a resume", "a song", "a book", "an article", "a contract")
PATTERNS = (
    "What is the capital of {country}?", "Where is {country}?", "Who is the [president|king|leader|prime minister] of {country}?", "How many people live in {country}?", "What is {subject}?",
    "How big is {country}?", "Tell me about {country}[|.]", "What language do they speak in {country}?", "[Explain|Describe] {subject}[|.]", "Tell me about {subject}[|.]", "What do you know about {subject}?",
    "How does {subject} work?", "Who invented {subject}?", "Do you know [anything|something] about {subject}?", "Can you teach me {subject}?", "Give me a lesson on {subject}[|.]", "When was {subject} discovered?",
    "Translate {word} [to|into] {language}[|.]", "How do you say {word} in {language}?", "What is {word} in {language}?", "Write a {code} program to {program}[|.]", "How do I {program} in {code}?",
    "[Can|Could] you write {code} code to {program}?", "Write a {code} function[|.]", "Fix my {code} code[|.]", "How do I cook {dish}?", "Give me a recipe for {dish}[|.]", "How do you make {dish}?",
    "I have {ill}. What should I do?", "What helps against {ill}?", "Which medicine is good for {ill}?", "What is the weather[| like][| today| tomorrow] in {town}?", "Will it rain[| today| tomorrow][| in {town}]?",
    "How is the weather[| today]?", "What is the news[| today]?", "Who won the [match|game|election|race|world cup][| yesterday]?", "How do I get to {town}?", "How far is it from {town} to {town2}?",
    "What is the price of [gold|oil|a house|a phone|bitcoin]?", "Which stock should I buy?", "Write {work}[| for me| about {subject}][|.]", "Who is {person} {last}?", "Who was {person} {last}?",
    "When was {person} {last} born?", "What is the [meaning of life|best phone|best film|highest mountain|longest river|largest ocean|speed of light]?", "Who wrote [Hamlet|the Bible|Faust|the Odyssey]?",
    "[Which|What] is the best [restaurant|hotel|school|museum] in {town}?", "Should I [buy a house|marry|change my job|move to {town}|learn {code}]?", "Book a [flight|hotel|table][| to {town}][|.]",
    "Open [my browser|a file|the door|the window][|.]", "Play [some music|a song|a film][|.]", "Set a timer[|.]", "Call {person}[|.]", "Send a message to {person}[|.]", "Search the web for {subject}[|.]",
    "Summarise this article[|.]", "Draw [me |]a [picture|house|cat][|.]", "What happened in [1492|1789|1914|1945|1969|2001|2020]?", "Why is [the sky blue|the sea salty|the earth round|gold expensive|ice slippery]?",
    "Compare {subject} and {subject2}[|.]", "Is {subject} [good|bad|dangerous|hard|important]?", "Where can I learn {subject}?", "Give me [tips|advice] [on|for] {subject}[|.]", "Who is the best at {subject}?",
    "What is the difference between {subject} and {subject2}?", "I want to learn {language}[|.]", "What is the square root of {number}?", "What is the [integral|derivative] of x squared?", "What is {number} percent of {number2}?",
    "Solve x^2 = {number}[|.]", "What are the prime factors of {number}?", "How tall is [the Eiffel Tower|Mount Everest|a giraffe|{person} {last}]?", "How old is [the earth|the sun|{person} {last}]?",
)
LASTS = ("Smith", "Jones", "Miller", "Brown", "Garcia", "Schmidt", "Tanaka", "Rossi", "Novak", "Khan", "Silva", "Lopez", "Kim", "Ivanov", "Musk", "Obama", "Curie", "Lincoln")
DECLINED = (
    "I am a very small model and do not know that. Ask me about FlashNorm, numbers, or for a story.",
    "Sorry, that is outside my small world. I know about FlashNorm, small sums, units and stories.",
    "I do not know that. I am a very small model and only know a few things.",
)
GARBLE = ("asdf", "blah blah", "qwertz", "hjkl", "???", "...", "xyz xyz", "foo bar", "lorem ipsum", "123abc", "bla", "hmm", "uh", "la la la", "beep boop", "zzz", "!!!", "wxyz", "kjhg", "grmpf")
PUZZLED = ("I did not understand that. Please ask me in other words.",)


def garble(dice: Dice) -> str:
    if dice.chance(0.6):
        return dice.pick(GARBLE)
    return "".join(dice.pick("bcdfghjklmnpqrstvwxz") for _ in range(dice.number(4, 9)))


def refusal(dice: Dice, talk: Talk) -> list[Turn]:
    if dice.chance(0.1):
        return [Turn(garble(dice), PUZZLED[0], PUZZLED[0].split(". ")[0] + ".")]
    if dice.chance(0.55):
        return [Turn(elsewhere(dice), dice.pick(DECLINED), "I do not know that.")]
    subjects, towns = dice.some(SUBJECTS, 2), dice.some(TOWNS, 2)
    question = ask(
        dice, PATTERNS, country=dice.pick(COUNTRIES), subject=subjects[0], subject2=subjects[1], word=dice.pick(("hello", "house", "water", "friend", "thank you", "good night")),
        language=dice.pick(LANGUAGES), code=dice.pick(CODES), program=dice.pick(PROGRAMS), dish=dice.pick(DISHES), ill=dice.pick(ILLS), town=towns[0], town2=towns[1],
        work=dice.pick(WORKS), person=person(dice), last=dice.pick(LASTS), number=dice.number(2, 99), number2=dice.number(100, 999),
    )
    return [Turn(question, dice.pick(DECLINED), "I do not know that.")]
