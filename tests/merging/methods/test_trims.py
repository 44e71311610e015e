"""The trims keep exactly what their papers and mergekit say."""

import math

import pytest
import torch

from merging.errors import PlanError
from merging.methods.della import della
from merging.methods.random import Random
from merging.methods.selection import kth_largest
from merging.methods.trim import Trim, Trimmed
from merging.methods.trims import at_random, by_magnitude, by_rank, without_outliers
from merging.setting import Scalar
from tests.merging.methods.one_tensor import values_of

TIES: dict[str, Scalar] = {
    "semantics": "mergekit", "scope": "tensor", "rescale": False, "rescale_norm": "auto"
}  # fmt: skip
CRUMBS: dict[str, Scalar] = {"scope": "tensor", "rescale": False, "rescale_norm": "auto"}
DARE: dict[str, Scalar] = {"semantics": "mergekit", "rescale": True, "rescale_norm": "auto"}
DELLA: dict[str, Scalar] = {"rescale": False, "rescale_norm": "auto"}
TEN = torch.tensor([3.0, -1.0, 10.0, 2.0, -5.0, 4.0, -9.0, 8.0, 6.0, -7.0])


def run(trim: Trim, delta: torch.Tensor, *, seed: int = 0, **values: Scalar) -> Trimmed:
    return trim(delta, random=Random(seed, "source", "w"), **values)


def kept(trimmed: Trimmed, delta: torch.Tensor) -> list[float]:
    return sorted(delta[trimmed.kept].abs().tolist())


@pytest.mark.parametrize(
    ("density", "count"), [(0.0, 0), (0.01, 1), (0.29, 2), (0.3, 3), (0.99, 9), (1.0, 10)]
)
def test_the_largest_magnitudes_are_kept(density: float, count: int) -> None:
    """int(density * n) of them, but at least one where density is above 0, as in mergekit."""
    trimmed = run(by_magnitude, TEN, density=density, **TIES)
    assert kept(trimmed, TEN) == [float(v) for v in range(11 - count, 11)]


@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_a_single_element_is_never_trimmed_away(density: float) -> None:
    """0-d tensors and norms of one element keep it at any density above 0."""
    assert run(by_magnitude, torch.tensor(3.0), density=density, **TIES).kept.item()


@pytest.mark.parametrize(("semantics", "count"), [("mergekit", 2), ("peft", 2), ("paper", 4)])
def test_equal_magnitudes(semantics: str, count: int) -> None:
    """Exactly k are kept in mergekit and PEFT; the paper's threshold keeps all equal ones."""
    delta = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.5])
    trimmed = run(by_magnitude, delta, density=0.4, **TIES | {"semantics": semantics})
    assert int(trimmed.kept.sum()) == count


def test_breadcrumbs_drop_the_largest_and_the_smallest() -> None:
    """Of ten, density 0.5 and gamma 0.1 drop the largest one and the smallest four."""
    trimmed = run(without_outliers, TEN, density=0.5, gamma=0.1, **CRUMBS)
    assert kept(trimmed, TEN) == [5.0, 6.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.09])
def test_breadcrumbs_with_no_outlier_to_drop_keep_the_largest(gamma: float) -> None:
    """gamma * n below 1 drops none; mergekit before 0.1.5 dropped the whole tensor."""
    trimmed = run(without_outliers, TEN, density=0.5, gamma=gamma, **CRUMBS)
    assert kept(trimmed, TEN) == [6.0, 7.0, 8.0, 9.0, 10.0]


def test_breadcrumbs_keep_their_density_before_they_drop_outliers() -> None:
    """Density 0.8 and gamma 0.5 do not both fit into ten: the largest two go."""
    trimmed = run(without_outliers, TEN, density=0.8, gamma=0.5, **CRUMBS)
    assert kept(trimmed, TEN) == [float(v) for v in range(1, 9)]


def test_breadcrumbs_of_density_one_keep_everything() -> None:
    """As in mergekit, whatever gamma says."""
    assert run(without_outliers, TEN, density=1.0, gamma=0.5, **CRUMBS).kept.all()


@pytest.mark.parametrize(
    ("trim", "extra"), [(by_magnitude, TIES), (without_outliers, CRUMBS | {"gamma": 0.05})]
)
def test_the_scope_of_a_model_is_the_trim_of_all_tensors_together(
    trim: Trim, extra: dict[str, Scalar]
) -> None:
    """Thresholds at `counts` of the whole source keep in each tensor what a trim of the joined
    tensors keeps there.
    """
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * n for n in (20, 30, 50)]
    joined = torch.cat(parts)
    whole = run(trim, joined, density=0.3, **extra).kept.split([20, 30, 50])
    model = extra | {"scope": "model", "density": 0.3}
    threshold = tuple(kth_largest(joined.abs(), k) for k in trim.counts(100, **model))
    for part, wanted in zip(parts, whole, strict=True):
        trimmed = trim(part, random=Random(0, "", ""), threshold=threshold, **model)
        assert torch.equal(trimmed.kept, wanted)


@pytest.mark.parametrize("trim", [by_magnitude, without_outliers, at_random, by_rank])
def test_the_scope_of_a_tensor_needs_no_threshold(trim: Trim) -> None:
    """counts() is empty, and so is that of a density of 1."""
    assert trim.counts(100, density=0.5, gamma=0.1, scope="tensor") == ()
    assert trim.counts(100, density=1.0, gamma=0.1, scope="model") == ()


def test_dare_keeps_the_l1_norm() -> None:
    """mergekit's rescale: the kept elements sum to what all did."""
    trimmed = run(at_random, TEN, density=0.5, **DARE)
    assert 0 < int(trimmed.kept.sum()) < 10
    assert float((TEN * trimmed.kept).abs().sum()) * trimmed.scale == pytest.approx(55.0)


@pytest.mark.parametrize("semantics", ["peft", "paper"])
def test_dare_of_others_divides_by_the_density(semantics: str) -> None:
    """1 / density, whatever was kept."""
    trimmed = run(at_random, TEN, density=0.25, **DARE | {"semantics": semantics})
    assert trimmed.scale == 4.0


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("linf", math.inf)])
def test_rescale_keeps_the_norm_that_is_named(norm: str, order: float) -> None:
    """In every trim that drops."""
    trimmed = run(
        without_outliers,
        TEN,
        density=0.5,
        gamma=0.2,
        **CRUMBS | {"rescale": True, "rescale_norm": norm},
    )
    after = torch.linalg.vector_norm(TEN * trimmed.kept * trimmed.scale, order)
    assert float(after) == pytest.approx(float(torch.linalg.vector_norm(TEN, order)))


def test_inv_density_overrides_semantics() -> None:
    """A norm that is named counts."""
    assert run(at_random, TEN, density=0.5, **DARE | {"rescale_norm": "inv_density"}).scale == 2.0


@pytest.mark.parametrize(
    ("trim", "extra"), [(by_magnitude, TIES | {"rescale": True}), (at_random, DARE)]
)
def test_nothing_is_not_rescaled(trim: Trim, extra: dict[str, Scalar]) -> None:
    """Zeros, and density 0, have no norm to keep: the scale stays finite."""
    for delta, density in ((torch.zeros(5), 0.5), (TEN, 0.0)):
        assert run(trim, delta, density=density, **extra).scale == 1.0


def test_della_keeps_by_rank() -> None:
    """Density 0.5 and epsilon 0.1 over a row of five: 0.4, 0.45, 0.5, 0.55, 0.6 by magnitude."""
    row = torch.tensor([3.0, -1.0, 5.0, 2.0, -4.0])
    rows = row.repeat(40_000, 1)
    share = run(by_rank, rows, density=0.5, epsilon=0.1, **DELLA).kept.float().mean(dim=0)
    wanted = torch.tensor([0.5, 0.4, 0.6, 0.45, 0.55])
    torch.testing.assert_close(share, wanted, rtol=0, atol=5 * (0.25 / 40_000) ** 0.5)


def test_della_ranks_each_row_by_itself() -> None:
    """A row of small elements is kept as much as a row of large ones; a vector is one row."""
    rows = torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    rows[:100] *= 1e-3
    mask = run(by_rank, rows, density=0.5, epsilon=0.3, **DELLA).kept.float()
    assert abs(float(mask[:100].mean() - mask[100:].mean())) < 0.02
    flat = run(by_rank, rows.flatten(), density=0.5, epsilon=0.3, **DELLA).kept.float()
    assert float(flat.reshape(200, 500)[100:].mean() - flat.reshape(200, 500)[:100].mean()) > 0.2


@pytest.mark.parametrize("shape", [(), (1,), (5000, 1)])
def test_della_of_rows_of_one_element_is_density(shape: tuple[int, ...]) -> None:
    """They have no rank to spread by; mergekit divides 0 by 0 there."""
    mask = run(by_rank, torch.ones(shape), density=0.3, epsilon=0.1, **DELLA).kept
    assert mask.shape == shape
    if mask.numel() > 1:
        assert float(mask.float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("density", "epsilon", "fits"),
    [(0.5, 0.49, True), (0.5, 0.5, False), (0.9, 0.15, False), (0.1, 0.15, False),
     (1.0, 0.15, True), (0.0, 0.15, True)],
)  # fmt: skip
def test_della_refuses_what_is_no_probability(density: float, epsilon: float, fits: bool) -> None:
    """density - epsilon and density + epsilon lie between 0 and 1, unless nothing is random."""
    values = values_of(della, 1, density=(density,), epsilon=(epsilon,))
    if fits:
        della.check(values)
    else:
        with pytest.raises(PlanError, match=r"take an epsilon below"):
            della.check(values)
