"""Who reads which text of a prompt, and how many rows that takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.compare.answer import Answer
from server.compare.candidate import Probe, Voice
from server.compare.reading import Pair
from server.compare.text_reader import Listener
from server.engine.request import Member


@dataclass(slots=True)
class TextPlan:
    """One text: the voices that read it, the pairs that are compared, whose tops are kept."""

    voices: set[int] = field(default_factory=set)
    pairs: set[Pair] = field(default_factory=set)
    shown: set[int] = field(default_factory=set)


def plan_texts(
    reference: int,
    reference_ids: tuple[int, ...],
    answers: Sequence[Answer],
    probes: Sequence[Probe],
) -> dict[tuple[int, ...], TextPlan]:
    """The texts of one prompt, by their tokens: equal texts are read once.

    The given reference and the reference candidate's answer are read by everybody, an answer of
    another candidate by that one and the reference candidate. Who has given no answer reads
    nothing, and without the reference candidate nothing is read.
    """
    heard = [index for index, answer in enumerate(answers) if answer.error is None]
    if reference not in heard:
        return {}
    texts: dict[tuple[int, ...], TextPlan] = {}
    everybody, pairs = _all(reference, heard, probes, len(answers))
    for text in (reference_ids, answers[reference].token_ids):
        if text:
            plan = texts.setdefault(text, TextPlan())
            plan.voices |= everybody
            plan.pairs |= pairs
    for candidate in heard:
        if text := answers[candidate].token_ids:
            plan = texts.setdefault(text, TextPlan())
            plan.voices |= {reference, candidate}
            plan.pairs |= {(reference, candidate)} if candidate != reference else set()
            plan.shown |= set(heard) if candidate == reference else set()
    return texts


def _all(
    reference: int, heard: Sequence[int], probes: Sequence[Probe], num_candidates: int
) -> tuple[set[int], set[Pair]]:
    """Every voice, and all that it is compared with; probes are numbered after the candidates."""
    voices = set(heard)
    pairs = {(reference, candidate) for candidate in heard if candidate != reference}
    without: dict[tuple[int, str | None], int] = {}
    for voice, probe in enumerate(probes, num_candidates):
        if probe.of not in heard:
            continue
        voices.add(voice)
        if probe.kind == "twin":
            pairs |= {(voice, probe.of), (reference, voice)}
        else:
            without[probe.of, probe.source] = voice
    for (candidate, source), voice in without.items():
        partner = without.get((reference, source))
        if candidate != reference and partner is not None:
            pairs.add((partner, voice))
    return voices, pairs


def union(voices: Mapping[int, Voice]) -> tuple[tuple[Member, ...], dict[int, Listener]]:
    """The rows that several voices need, each once, and which of them each voice combines.

    Rows are the same if they read the same prompt with the same weights.
    """
    places: dict[tuple[tuple[int, ...], str], int] = {}
    members: list[Member] = []
    listeners = {}
    for number, voice in voices.items():
        rows = []
        for member in voice.members:
            key = member.prompt, member.weights.digest
            if key not in places:
                places[key] = len(members)
                members.append(member)
            rows.append(places[key])
        listeners[number] = Listener(tuple(rows), voice.rule)
    return tuple(members), listeners
