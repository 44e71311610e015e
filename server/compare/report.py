"""The result of a comparison, as plain values: what the JSON shows, and the pages are made of.

Shares are from 0 to 1, divergences and losses in nats, times in seconds. None: there is no such
number here.
"""

from dataclasses import dataclass
from typing import Literal

from ensemble.fidelity import Statistic
from ensemble.non_inferiority import Conclusion
from ensemble.statistics import Interval
from ensemble.verdict import Advice, Verdict
from server.compare.about import About
from server.compare.candidate import Role
from server.compare.findings import TextKind
from server.compare.measures import Basis
from server.compare.prompt_report import PromptReport, Ribbon


@dataclass(frozen=True, slots=True)
class Cost:
    """What a candidate's answers took.

    `tokens_per_second` counts all answers that ran at `concurrency`; None where other candidates
    ran beside them. `kv_bytes` is the most that one answer held, on average, and `forwards` how
    many rows passed through the model for each token.
    """

    tokens_per_second: float | None
    concurrency: int
    seconds_to_first_token: float | None
    seconds_to_first_token_p95: float | None
    kv_bytes: float
    forwards_per_token: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A candidate over some prompts. `retention` is its score divided by the specialist's."""

    num_answers: int
    num_errors: int
    num_tokens: float
    score: Interval | None
    loss: Interval | None
    retention: Interval | None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over positions of one kind of text; `forward_kl_error` counts prompts as evidence."""

    text: TextKind
    num_positions: int
    forward_kl: float
    forward_kl_error: float
    reverse_kl: float
    js: float
    total_variation: float
    same_top: float


@dataclass(frozen=True, slots=True)
class Table:
    """The table of llama.cpp's names, over one kind of text."""

    text: TextKind
    num_positions: int
    num_prompts: int
    statistics: tuple[Statistic, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many positions have a JS divergence between an edge and the next one."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Versus:
    """A candidate against the reference. Differences are of what both have, better is positive.

    `same_answers` is the share of answers that are the same token for token. `worst` are the
    prompts on which it loses most, worst first.
    """

    verdict: Verdict | None
    score_difference: Interval | None
    loss_difference: Interval | None
    same_answers: float | None
    divergences: tuple[Divergence, ...]
    tables: tuple[Table, ...]
    histogram: Histogram | None
    worst: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One candidate over all prompts. `recipe` says in words what it is made of; `versus` is None
    for the reference.
    """

    index: int
    name: str
    role: Role
    model: str
    preset: str | None
    revision: int | None
    digest: str
    mode: str
    path: str
    recipe: str
    summary: Summary
    cost: Cost
    versus: Versus | None


@dataclass(frozen=True, slots=True)
class TagCandidate:
    """One candidate on the prompts of one tag."""

    candidate: int
    summary: Summary
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class TagReport:
    """The prompts of one tag; None for those without. `specialist` is the index of a candidate."""

    tag: str | None
    num_prompts: int
    specialist: int | None
    candidates: tuple[TagCandidate, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What leaving one source out does to a candidate, on one tag or (None) on all prompts.

    `loss_change` is the loss of the given references without the source minus with it: below 0 the
    source does harm. `gap` is the mean JS between the merge and its ensemble when both leave the
    source out, and `gap_change` by how much that is above what it is with all of them.
    """

    source: str
    candidate: int
    tag: str | None
    num_prompts: int
    loss_change: Interval | None
    gap: float | None
    gap_change: Interval | None


@dataclass(frozen=True, slots=True)
class Blame:
    """What each source does to the candidate, and on each tag the source that does most harm."""

    effects: tuple[LeftOut, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the way from a merge to the reference: how far apart its two ends are."""

    name: str
    text: TextKind
    js: float
    forward_kl: float
    loss_change: Interval | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a difference comes from: from the merge to its twin is linearisation, from the twin to
    the reference is the rule. Loss changes add up to the total, divergences do not.
    """

    candidate: int
    linearisation: Step
    rule: Step
    total: Step
    sentence: str


Sign = Literal["no_answers", "loss", "score", "repetition"]
"""What shows that a candidate is broken."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A candidate that is of no use, whatever the margin. `culprit` is the source that broke it,
    where one is known.
    """

    candidate: int
    signs: tuple[Sign, ...]
    culprit: str | None
    sentence: str


@dataclass(frozen=True, slots=True)
class BestSource:
    """The subject against the source that does best on these prompts alone."""

    candidate: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AtMargin:
    """What these prompts say at another margin, and about how many would decide there."""

    margin: float
    conclusion: Conclusion
    num_needed: int | None


HeadlineAdvice = Advice | Literal["broken", "none"]


@dataclass(frozen=True, slots=True)
class Headline:
    """What is to be read first. `advice` is the verdict's, unless something is broken or there is
    nothing to say; `more` are sentences that go with it, and `next_steps` what to do now.
    """

    advice: HeadlineAdvice
    sentence: str
    more: tuple[str, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything. `subject` is the candidate that the `verdict` is about: the merge, if there is
    one, else the first candidate that is not the reference. The `headline` is made of all that is
    known of it, the verdict among it.
    """

    about: About
    headline: Headline
    broken: tuple[Broken, ...]
    best_source: BestSource | None
    margins: tuple[AtMargin, ...]
    basis: Basis
    margin: float
    level: float
    seed: int
    scorers: tuple[str, ...]
    max_tokens: int
    concurrency: int
    num_prompts: int
    reference: int
    subject: int
    verdict: Verdict | None
    candidates: tuple[CandidateReport, ...]
    tags: tuple[TagReport, ...]
    blame: Blame | None
    origin: Origin | None
    ribbons: tuple[Ribbon, ...]
    prompts: tuple[PromptReport, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]
