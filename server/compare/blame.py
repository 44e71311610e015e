"""Which source to blame: what happens to the candidate when one of its sources is left out."""

from collections.abc import Sequence

import numpy as np

from ensemble.non_inferiority import MIN_PROMPTS
from ensemble.statistics import Array, Interval, mean_interval
from server.compare.candidate import Probe
from server.compare.findings import Findings, TextKind
from server.compare.report import Blame, LeftOut


def find_blame(findings: Findings) -> Blame | None:
    """The effect of every source that was left out, on each tag and on all prompts."""
    tags = list(dict.fromkeys(case.tag for case in findings.cases))
    groups: list[tuple[str | None, list[int]]] = [(None, [c.index for c in findings.cases])]
    if tags != [None]:
        groups += [(tag, _tagged(findings, tag)) for tag in tags if tag is not None]
    effects = [
        effect
        for tag, cases in groups
        for index, probe in enumerate(findings.probes)
        if probe.kind == "without"
        if (effect := _effect(findings, probe, findings.probe_voice(index), tag, cases))
    ]
    if not effects:
        return None
    reference = findings.terms.reference
    blamed = sorted({effect.candidate for effect in effects}, key=lambda of: of == reference)
    sentences = (
        sentence
        for tag, _ in groups
        for candidate in blamed  # the reference last
        if (sentence := _sentence(findings, effects, tag, candidate))
    )
    return Blame(tuple(effects), tuple(sentences))


def _tagged(findings: Findings, tag: str | None) -> list[int]:
    return [case.index for case in findings.cases if case.tag == tag]


def _effect(
    findings: Findings, probe: Probe, voice: int, tag: str | None, cases: Sequence[int]
) -> LeftOut | None:
    assert probe.source is not None
    losses = _losses(findings, voice, probe.of, cases)
    loss_change = _change(findings, losses)
    gaps = _gaps(findings, probe, voice, cases)
    if loss_change is None and not len(gaps):
        return None
    return LeftOut(
        source=probe.source,
        candidate=probe.of,
        tag=tag,
        num_prompts=max(len(losses), len(gaps)),
        loss_change=loss_change,
        gap=float(gaps[:, 0].mean()) if len(gaps) else None,
        gap_change=_change(findings, gaps),
    )


def _losses(findings: Findings, voice: int, candidate: int, cases: Sequence[int]) -> Array:
    """Losses of the given references without the source and with it: [cases, 2]."""
    found = []
    for case in cases:
        text = findings.text(case, "given", candidate)
        pair = (None, None) if text is None else (text.loss(voice), text.loss(candidate))
        if None not in pair:
            found.append(pair)
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _gaps(findings: Findings, probe: Probe, voice: int, cases: Sequence[int]) -> Array:
    """Mean JS between the candidate and the reference, both without the source and both with it:
    [cases, 2]. Empty unless the reference leaves it out too.
    """
    reference = findings.terms.reference
    partner = next(
        (
            findings.probe_voice(index)
            for index, other in enumerate(findings.probes)
            if other.kind == "without" and other.of == reference and other.source == probe.source
        ),
        None,
    )
    found = []
    for case in cases if partner is not None and probe.of != reference else ():
        kind: TextKind = "given" if findings.cases[case].reference_ids else "reference"
        text = findings.text(case, kind, probe.of)
        pairs = {} if text is None else text.pairs
        assert partner is not None
        without, whole = pairs.get((partner, voice)), pairs.get((reference, probe.of))
        if without is not None and whole is not None:
            found.append((float(without.js.mean()), float(whole.js.mean())))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _change(findings: Findings, pairs: Array) -> Interval | None:
    if not len(pairs):
        return None
    terms = findings.terms
    return mean_interval(pairs[:, 0] - pairs[:, 1], level=terms.level, seed=terms.seed)


def _sentence(
    findings: Findings, effects: Sequence[LeftOut], tag: str | None, candidate: int
) -> str | None:
    """The source that does most harm to a candidate on a tag, if enough prompts say so."""
    name = findings.candidates[candidate].name
    where = "all prompts" if tag is None else f"{tag!r}"
    harmful = [
        (effect.loss_change, effect.source)
        for effect in effects
        if (effect.tag, effect.candidate) == (tag, candidate)
        if effect.num_prompts >= MIN_PROMPTS
        if effect.loss_change is not None and effect.loss_change.high < 0
    ]
    if not harmful:
        return None
    change, source = min(harmful, key=lambda item: item[0].estimate)
    return (
        f"on {where}, {source} harms {name}: without it the loss is {-change.estimate:.3f} nats "
        f"lower ({change.level * 100:g} % CI {-change.high:.3f} to {-change.low:.3f})"
    )
