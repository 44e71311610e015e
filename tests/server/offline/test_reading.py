"""The figures of a merge in words."""

import pytest

from merging.diagnosis import Diagnosis, GroupFigures, PairFigures, SourceFigures
from server.offline.reading import interpretation


def read(
    norms: dict[str, float],
    change: float,
    *,
    cosine: float = 0.0,
    shares: dict[str, float] | None = None,
) -> str:
    """What is said of a merge with these figures."""
    sources = tuple(
        SourceFigures(name, norm, 0.0, (shares or {}).get(name, 1 / len(norms)))
        for name, norm in norms.items()
    )
    names = list(norms)
    pairs = (PairFigures(names[0], names[1], cosine, 0.5),) if len(names) > 1 else ()
    return "\n".join(interpretation(Diagnosis(figures(change, sources, pairs), ())))


def figures(
    change: float | None,
    sources: tuple[SourceFigures, ...],
    pairs: tuple[PairFigures, ...] = (),
) -> GroupFigures:
    """The figures of all tensors together."""
    return GroupFigures(None, "all", 1, 1.0, 1.0, change, sources, pairs)


def test_weights_of_another_base() -> None:
    """Two models that know nothing of each other differ by the root of two, or 0.707 at half."""
    assert "other: its delta is 1.41 of the base's norm" in (said := read({"other": 1.413}, 0.707))
    assert "unrelated weights. Is this the right base?" in said
    assert "which is a lot for a fine-tune" in read({"tuned": 0.3}, 0.3)
    assert "all but nothing" in read({"tuned": 1e-5}, 1e-5)


def test_a_good_merge() -> None:
    """Raises no suspicion."""
    said = read({"a": 0.02, "b": 0.01}, 0.015)
    assert said == (
        "The merge changes the base by 0.015 of its norm.\n"
        "The sources change the base in different directions: they do not clash."
    )


@pytest.mark.parametrize(
    ("change", "expected"), [(0.06, "3 times the largest delta"), (0.002, "little of it is left")]
)
def test_a_merge_that_is_too_large_or_too_small(change: float, expected: str) -> None:
    """Is held against the largest source, with what to do."""
    said = read({"a": 0.02, "b": 0.01}, change)
    assert expected in said
    assert "weights, or lambda" in said


def test_sources_that_agree_and_clash() -> None:
    """Are named, with their cosine."""
    norms = {"a": 0.02, "b": 0.01}
    assert "a and b: alike (cosine 0.8)" in read(norms, 0.02, cosine=0.8)
    assert "a and b: opposed (cosine -0.4)" in read(norms, 0.02, cosine=-0.4)
    assert "do not clash" not in read(norms, 0.02, cosine=-0.4)


def test_a_source_without_a_say() -> None:
    """Or one that works against the others."""
    norms = {"a": 0.02, "b": 0.01}
    assert "b: has next to no say" in read(norms, 0.02, shares={"a": 0.99, "b": 0.01})
    assert "b: works against the merge" in read(norms, 0.02, shares={"a": 1.2, "b": -0.2})


def test_nothing_to_say() -> None:
    """Is said too."""
    assert interpretation(Diagnosis(figures(None, ()), ())) == ["Nothing stands out."]
