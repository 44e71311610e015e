"""What the figures of a merge mean, in words."""

from collections.abc import Iterator

from merging.diagnosis import Diagnosis, GroupFigures, PairFigures, SourceFigures
from server.offline.heat_map import number

UNRELATED = 0.7
"""Norm of a delta over the base's from which weights are hardly a fine-tune: those of two models
that know nothing of each other differ by 1.4, and fine-tunes by less than 0.2."""

LARGE = 0.25
TINY = 1e-4
SILENT = 0.05
"""Share of the merged delta below which a source has no say."""

ALIKE = 0.3
OPPOSED = -0.1
GROWN = 1.5
"""Norm of the merged delta over that of the largest source's."""

FAINT = 0.2
MAX_PAIRS = 4


def interpretation(diagnosis: Diagnosis) -> list[str]:
    """A sentence for each thing that is worth one; at least one."""
    total = diagnosis.total
    sentences = [sentence for source in total.sources for sentence in _of_source(source, total)]
    sentences += _of_merge(total)
    pairs = sorted(total.pairs, key=lambda pair: -abs(pair.cosine or 0.0))
    sentences += [text for pair in pairs[:MAX_PAIRS] for text in _of_pair(pair)]
    if not any(map(_is_alike_or_opposed, pairs)) and pairs:
        sentences.append("The sources change the base in different directions: they do not clash.")
    return sentences or ["Nothing stands out."]


def _of_source(source: SourceFigures, total: GroupFigures) -> Iterator[str]:
    norm, share = source.relative_norm, source.contribution
    if norm is not None and norm >= UNRELATED:
        cosine = f", cosine with the merge {number(source.cosine)}"
        yield (
            f"{source.name}: its delta is {number(norm)} of the base's norm{cosine}: unrelated "
            "weights. Is this the right base?"
        )
    elif norm is not None and norm >= LARGE:
        yield (
            f"{source.name}: its delta is {number(norm)} of the base's norm, which is a lot for a "
            "fine-tune: is this the right base?"
        )
    elif norm is not None and norm <= TINY:
        yield f"{source.name}: its delta is {number(norm)} of the base's norm: all but nothing."
    if share is None or len(total.sources) < 2:
        return
    if share < -SILENT:
        yield f"{source.name}: works against the merge ({share:.0%} of it): is its weight negative?"
    elif abs(share) < SILENT:
        yield (
            f"{source.name}: has next to no say ({share:.0%} of the merge): raise its weight, or "
            "lower the others'."
        )


def _of_merge(total: GroupFigures) -> Iterator[str]:
    largest = max((source.relative_norm or 0.0 for source in total.sources), default=0.0)
    change = total.relative_change
    if change is None:
        return
    yield f"The merge changes the base by {number(change)} of its norm."
    if largest and change >= GROWN * largest:
        yield (
            f"That is {change / largest:.2g} times the largest delta of a source: answers may "
            "break. Lower the weights, or lambda."
        )
    elif largest and change <= FAINT * largest:
        yield (
            f"That is {change / largest:.0%} of the largest delta of a source: little of it is "
            "left. Raise the weights, or lambda."
        )


def _of_pair(pair: PairFigures) -> Iterator[str]:
    cosine, names = pair.cosine, f"{pair.first} and {pair.second}"
    if cosine is None:
        return
    if cosine >= ALIKE:
        yield f"{names}: alike (cosine {number(cosine)}): what they share adds up."
    elif cosine <= OPPOSED:
        yield f"{names}: opposed (cosine {number(cosine)}): each undoes part of the other."


def _is_alike_or_opposed(pair: PairFigures) -> bool:
    return pair.cosine is None or pair.cosine >= ALIKE or pair.cosine <= OPPOSED
