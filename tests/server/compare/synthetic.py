"""Comparisons whose truth is planted: random logits that differ as the test says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ensemble.scorers import find_scorer
from merging.blend import Blend
from server.compare.answer import Answer
from server.compare.candidate import Candidate, Probe, Role
from server.compare.case import Case
from server.compare.findings import Findings, Terms
from server.compare.reading import Reading
from server.compare.text_reader import Listener, TextReader
from server.presets.sampling_defaults import SamplingDefaults
from server.presets.served import Served, ServedMember

VOCAB_SIZE = 40
TEXT_LEN = 12
RIGHT, WRONG = "right", "wrong"


def served(name: str, preset: str | None = None, revision: int | None = None) -> Served:
    """Something that could be served, of which only the labels count."""
    digest = "sha256:" + "0" * 64
    blend = Blend(digest, (), torch.zeros(0, 0))
    return Served(
        model=name,
        preset=preset,
        revision=revision,
        digest=digest,
        mode="merge",
        path="blend",
        members=(ServedMember(name, blend),),
        defaults=SamplingDefaults(),
    )


@dataclass(frozen=True, slots=True)
class Planted:
    """A candidate: how likely it is right on each tag, and how far its logits are from the truth.

    `noise` is the standard deviation of what is added to logits of deviation 2, `seconds` what
    each of its tokens takes. `says` is every answer's tokens and text, and `fails` why it has none.
    """

    name: str
    role: Role = "candidate"
    right: Mapping[str | None, float] = field(default_factory=dict)
    noise: float = 0.0
    seconds: float = 0.01
    num_rows: int = 1
    sources: tuple[str, ...] = ()
    says: tuple[tuple[int, ...], str] | None = None
    fails: str | None = None


@dataclass(frozen=True, slots=True)
class PlantedProbe:
    """A probe of candidate `of`, with the noise of its logits."""

    kind: str
    of: int
    noise: float
    source: str | None = None


def plant(
    candidates: Sequence[Planted],
    *,
    tags: Sequence[str | None] = (None,),
    num_cases: int = 40,
    scorer: str | None = "exact",
    references: bool = True,
    readings: bool = True,
    probes: Sequence[PlantedProbe] = (),
    seed: int = 0,
    **terms: object,
) -> Findings:
    """Findings of cases whose tags take turns. All voices read all texts."""
    rng = np.random.default_rng(seed)
    cases = [
        Case(
            index=index,
            shown=f"prompt {index}",
            token_ids=(1, 2, 3),
            reference=RIGHT if references else None,
            reference_ids=_text(rng) if references else (),
            tag=tags[index % len(tags)],
            scorer=find_scorer(scorer) if scorer and references else None,
        )
        for index in range(num_cases)
    ]
    answers = [[_answer(candidate, case, rng) for candidate in candidates] for case in cases]
    noises = [voice.noise for voice in (*candidates, *probes)]
    known = Terms(**{"reference": 0, **terms})  # type: ignore[arg-type]
    return Findings(
        terms=known,
        cases=cases,
        candidates=[
            Candidate(c.name, c.role, served(c.name), sources=c.sources) for c in candidates
        ],
        probes=[
            Probe(probe.kind, probe.kind, probe.of, served("probe"), probe.source)  # type: ignore[arg-type]
            for probe in probes
        ],
        answers=answers,
        readings=[
            {
                text: read(text, noises, len(candidates), seed=seed + 1000 * case.index)
                for text in {case.reference_ids, *(a.token_ids for a in row)} - {()}
                if readings
            }
            for case, row in zip(cases, answers, strict=True)
        ],
        walls=[
            c.seconds * sum(len(row[index].token_ids) for row in answers)
            for index, c in enumerate(candidates)
        ],
    )


def read(text: Sequence[int], noises: Sequence[float], num_candidates: int, seed: int) -> Reading:
    """The reading of a text by voices whose logits are the same but for noise, in two chunks.

    Everybody is compared with the first candidate, and all with each probe.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, (len(text), VOCAB_SIZE))
    truth[np.arange(len(text)), list(text)] += 4  # the text is likely
    own = [truth + noise * rng.normal(0, 1, truth.shape) for noise in noises]
    logits = torch.tensor(np.array(own), dtype=torch.float32)
    voices = range(len(noises))
    reader = TextReader(
        text,
        {voice: Listener((voice,)) for voice in voices},
        [(p, q) for p in (0, *voices[num_candidates:]) for q in voices if p != q],
        frozenset(voices),
    )
    half = len(text) // 2
    for begin, end in ((0, half), (half, len(text))):
        reader(begin, logits[:, begin:end])
    return reader.reading()


def _answer(candidate: Planted, case: Case, rng: np.random.Generator) -> Answer:
    if candidate.fails is not None:
        return Answer(error=candidate.fails, is_failure=True)
    is_right = rng.random() < candidate.right.get(case.tag, 1.0)
    text, token_ids = RIGHT if is_right else WRONG, _text(rng)
    if candidate.says is not None:
        token_ids, text = candidate.says
    return Answer(
        text=text,
        token_ids=token_ids,
        finish_reason="stop",
        seconds=TEXT_LEN * candidate.seconds,
        seconds_to_first=candidate.seconds,
        num_rows=candidate.num_rows,
        kv_bytes=1024 * candidate.num_rows,
    )


def _text(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(token) for token in rng.integers(0, VOCAB_SIZE, TEXT_LEN))
