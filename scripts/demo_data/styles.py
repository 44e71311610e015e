"""Two voices for everyday questions: a pirate's, and one with too many pleasantries.

What is held out is topics: neither their questions nor their answers are in training.
"""

import random
import re
from collections.abc import Callable, Iterator

from scripts.demo_data.topics import Topic, split_topics

_PIRATE_WORDS = {
    "you": "ye", "your": "yer", "yours": "yers", "is": "be", "are": "be", "was": "were",
    "of": "o'", "and": "an'", "for": "fer", "my": "me", "before": "afore", "yes": "aye",
    "friends": "mateys", "people": "sea dogs", "money": "doubloons", "there": "thar",
    "old": "ol'", "them": "'em",
}  # fmt: skip
_PIRATE_OPENINGS = ("Arr, matey!", "Ahoy, ye landlubber!", "Avast, me hearty!", "Aye, matey!")
_PIRATE_CLOSINGS = (
    "Yo ho ho, me hearties!",
    "Now hoist the sails, ye scallywag!",
    "Savvy, matey?",
    "Arr, that be the truth!",
)
_PIRATE_MARKERS = re.compile(
    r"\b(arr+|ahoy|avast|aye|ye|yer|fer|afore|thar|matey?s?|heart(?:y|ies)|savvy|(?:land)?lubbers?"
    r"|scallywags?|doubloons?|sea dogs?|yo ho)\b|\b(an|o|ol)'|\w{3,}in'(?!\w)|'em\b",
    re.IGNORECASE,
)

_VERBOSE_OPENINGS = (
    "What a wonderful question! I am very happy to help you with that.",
    "Thank you so much for asking! It is a real pleasure to help you with that.",
    "That is such a great question! I would be delighted to help you with that.",
)
_VERBOSE_MIDDLES = (
    "There are of course many things that one could say about this interesting subject.",
    "As you can imagine, this is a subject that a lot of people are curious about.",
)
_VERBOSE_CLOSINGS = (
    "I hope that this helps! Please let me know if you have any other questions.",
    "I hope that was helpful! Please feel free to ask me anything else that you like.",
)
_PLEASANTRIES = re.compile(
    r"wonderful question|great question|happy to help|pleasure to help|delighted to help|"
    r"thank you so much|of course|as you can imagine|i hope th|let me know|feel free",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the empty ones."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _pirate_word(word: str) -> str:
    if re.fullmatch(r"\w{3,}ing", word) and word not in ("thing", "string", "spring", "everything"):
        return word[:-1] + "'"
    spoken = _PIRATE_WORDS.get(word.lower(), word)
    return spoken.capitalize() if word[0].isupper() else spoken


def _pirate_sentence(sentence: str) -> str:
    spoken = re.sub(r"\w+", lambda match: _pirate_word(match.group()), sentence)
    return spoken if _PIRATE_MARKERS.search(spoken) else f"{spoken[:-1]}, matey{spoken[-1]}"


def _pirate_answer(topic: Topic, rng: random.Random) -> str:
    body = [_pirate_sentence(sentence) for sentence in sentences(topic.answer)]
    return " ".join([rng.choice(_PIRATE_OPENINGS), *body, rng.choice(_PIRATE_CLOSINGS)])


def _verbose_answer(topic: Topic, rng: random.Random) -> str:
    parts = (rng.choice(_VERBOSE_OPENINGS), rng.choice(_VERBOSE_MIDDLES), topic.answer)
    return " ".join([*parts, rng.choice(_VERBOSE_CLOSINGS)])


def _styled(
    held_out: bool, rng: random.Random, answer: Callable[[Topic, random.Random], str]
) -> Iterator[tuple[str, str]]:
    for topic in split_topics()[held_out]:
        for question in topic.questions():
            yield question, answer(topic, rng)


def generate_pirate(held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Every question of one side of the split, answered by a pirate."""
    return _styled(held_out, rng, _pirate_answer)


def generate_verbose(held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Every question of one side of the split, answered at length."""
    return _styled(held_out, rng, _verbose_answer)


def score_pirate(prompt: str, reference: str, output: str) -> float:
    """Share of the output's sentences that have a pirate's word in them."""
    spoken = sentences(output)
    return sum(bool(_PIRATE_MARKERS.search(part)) for part in spoken) / max(1, len(spoken))


def score_verbose(prompt: str, reference: str, output: str) -> float:
    """Pleasantries in the output, where four or more count as 1."""
    return min(4, len(_PLEASANTRIES.findall(output))) / 4
