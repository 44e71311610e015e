"""Small merges worked by hand, for every family of methods."""

import math

import pytest
import torch

from merging.errors import PlanError
from merging.methods.arcee_fusion import divergence, fusion_threshold
from tests.merging.methods.one_tensor import merge

A, B = [1, -2, 3, 0], [-1, -1, 2, 4]
ZEROS = [0.0] * 4


def close(result: torch.Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(result, torch.tensor(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("semantics", "weights", "wanted"),
    [
        ("mergekit", (0.6, 0.4), [1.0, -1.6, 2.6, 4.0]),
        ("mergekit", (0.1, 0.9), [-1.0, -1.1, 2.1, 4.0]),
        ("peft", (0.6, 0.4), [0.6, -0.8, 1.3, 1.6]),
        ("peft", (0.1, 0.9), [0.1, -0.55, 1.05, 3.6]),
        ("paper", (0.1, 0.9), [0.1, -0.55, 1.05, 3.6]),
    ],
)
def test_ties_elects_signs(
    semantics: str, weights: tuple[float, float], wanted: list[float]
) -> None:
    """mergekit by weighted deltas, where 0.1 and 0.9 flip element 0; the others by unweighted."""
    close(merge("ties", ZEROS, [A, B], weight=weights, semantics=semantics), wanted)


def test_ties_trims_before_it_elects() -> None:
    """Density 1/2 keeps -2, 3 of A and 2, 4 of B."""
    half = merge("ties", ZEROS, [A, B], weight=(1.0, 1.0), density=(0.5, 0.5), normalize=False)
    close(half, [0.0, -2.0, 5.0, 4.0])


@pytest.mark.parametrize("weights", [(0.5, -0.5), (0.1, 0.2, -0.3)])
def test_ties_does_not_divide_by_weights_that_cancel(weights: tuple[float, ...]) -> None:
    """Deltas that agree after weighting, by weights that sum to 0 up to rounding: just summed."""
    signs = [[1.0 if w > 0 else -1.0] for w in weights]
    total = sum(abs(w) for w in weights)
    close(merge("ties", [0.0], signs, weight=weights), [total])


def test_ties_divides_by_a_weight_however_small() -> None:
    """1e-9 is no rounding of 1: where its source is alone, its delta comes out whole."""
    result = merge("ties", [0.0, 0.0], [[2.0, 2.0], [0.0, 2.0]], weight=(1e-9, 1.0))
    close(result, [2.0, 2.0])


def test_slerp_follows_the_arc() -> None:
    """A quarter of the way from [1, 0] to [0, 1] is at 22.5 degrees."""
    close(merge("slerp", [1.0, 0.0], [[0.0, 1.0]], t=0.25), [0.92387953, 0.38268343])


@pytest.mark.parametrize("end", [[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
def test_slerp_of_collinear_vectors_is_straight(end: list[float]) -> None:
    """Same or opposite directions; a zero vector is perpendicular to all, as in mergekit."""
    weights = (0.75, 0.25) if any(end) else (math.sin(0.75 * math.pi / 2), 0.0)
    close(merge("slerp", [1.0, 0.0], [end], t=0.25), [weights[0] + weights[1] * end[0], 0.0])


def test_slerp_is_straight_beyond_a_cosine_of_09995() -> None:
    """0.0316 radians and less: on both sides of the threshold."""
    for angle, straight in ((0.0300, True), (0.0330, False)):
        source = [math.cos(angle), math.sin(angle)]
        result = merge("slerp", [1.0, 0.0], [source], t=0.5)
        assert (abs(float(result.norm()) - 1) > 1e-5) == straight


def test_nuslerp_takes_the_ratio_of_weights() -> None:
    """0.75 and 0.25 are a quarter of the way, at any scale of the weights."""
    for scale in (1.0, 8.0):
        sources = [[1.0, 0.0], [0.0, 1.0]]
        weight = (0.75 * scale, 0.25 * scale)
        close(merge("nuslerp", None, sources, weight=weight), [0.92387953, 0.38268343])


def test_nuslerp_is_half_way_where_weights_cancel() -> None:
    """As in mergekit: a sum below 1e-6 is no ratio."""
    result = merge("nuslerp", None, [[1.0, 0.0], [0.0, 1.0]], weight=(1.0, -1.0))
    close(result, [math.sqrt(0.5), math.sqrt(0.5)])


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("factor", [-1.0, -0.3, 2.0])
def test_nuslerp_of_collinear_deltas_is_straight(factor: float, flatten: bool) -> None:
    """Also where rounding keeps the cosine of two deltas from being exactly 1 or -1."""
    for seed in range(20):
        delta = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
        result = merge(
            "nuslerp",
            torch.zeros(7, 5),
            [delta, factor * delta],
            weight=(0.75, 0.25),
            nuslerp_flatten=flatten,
        )
        torch.testing.assert_close(result, (0.75 + 0.25 * factor) * delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [False, True])
def test_nuslerp_takes_rows_or_columns(columns: bool) -> None:
    """Without flatten the rows are interpolated one by one; with row_wise the columns."""
    one, other = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    wanted = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [2.0, 0.0]])
    result = merge(
        "nuslerp",
        None,
        [one.T, other.T] if columns else [one, other],
        weight=(1.0, 1.0),
        nuslerp_flatten=False,
        nuslerp_row_wise=columns,
    )
    torch.testing.assert_close(result.T if columns else result, wanted)


def test_multislerp_is_a_mean_direction_at_the_mean_length() -> None:
    """Directions 1:1 and 1:3; the length is the weighted mean of lengths, 1 and 1.25."""
    close(merge("multislerp", None, [[1, 0], [0, 1]], weight=(1.0, 1.0)), [math.sqrt(0.5)] * 2)
    result = merge("multislerp", None, [[2, 0], [0, 1]], weight=(1.0, 3.0))
    close(result, [0.39528471, 1.18585412])


def test_multislerp_of_opposite_directions() -> None:
    """Two are summed; of three there is no direction, and the error says what to do."""
    close(merge("multislerp", None, [[1, 0], [-3, 0]], weight=(0.5, 0.5)), [-1.0, 0.0])
    with pytest.raises(PlanError, match=r"cancel.*change a weight"):
        merge("multislerp", None, [[2, 0], [-1, 0], [-1, 0]], weight=(2.0, 1.0, 1.0))


def test_multislerp_refuses_weights_that_sum_to_zero() -> None:
    """They cannot be normalized; without normalize they can be used."""
    with pytest.raises(PlanError, match="sum to 0"):
        merge("multislerp", None, [[1, 0], [0, 1]], weight=(1.0, -1.0))
    result = merge(
        "multislerp", None, [[1, 0], [0, 3]], weight=(1.0, -1.0), normalize_weights=False
    )
    close(result, [-math.sqrt(2), math.sqrt(2)])


def test_karcher_keeps_directions_and_averages_lengths() -> None:
    """[1, 0] and [2, 0]; and the middle of a right angle."""
    close(merge("karcher", None, [[1, 0], [2, 0]]), [1.5, 0.0])
    close(merge("karcher", None, [[1, 0], [0, 1]]), [math.sqrt(0.5), math.sqrt(0.5)])


def test_karcher_survives_opposite_sources() -> None:
    """A source opposite to the mean does not pull it; two opposite ones start from the first."""
    close(merge("karcher", None, [[1, 0], [1, 0], [-1, 0]]), [1.0, 0.0])
    close(merge("karcher", None, [[1, 0], [-2, 0]]), [1.5, 0.0])


def test_karcher_leaves_out_tensors_of_zeros() -> None:
    """They have no direction, but count in the mean length; all of them give zeros."""
    close(merge("karcher", None, [[1, 0], [0, 0]]), [0.5, 0.0])
    close(merge("karcher", None, [[0, 0], [0, 0]]), [0.0, 0.0])


def test_karcher_of_fine_tunes_is_not_noise() -> None:
    """Two vectors 1e-4 apart: the mean direction bisects them to float32."""
    angle = 1e-4
    source = [math.cos(angle), math.sin(angle)]
    result = merge("karcher", None, [[1.0, 0.0], source])
    assert float(result[1]) == pytest.approx(math.sin(angle / 2), rel=1e-5)


def test_model_stock_pulls_to_the_base_by_agreement() -> None:
    """A cosine of 0.7071 gives t = 0.8284 of the mean."""
    close(merge("model_stock", [0, 0], [[1, 0], [1, 1]]), [0.82842712, 0.41421356])


def test_model_stock_keeps_the_base_where_there_is_no_estimate() -> None:
    """Opposite deltas make the denominator 0; just beside it the estimate is used, not clamped."""
    close(merge("model_stock", [5.0, 5.0], [[6.0, 5.0], [4.0, 5.0]]), [5.0, 5.0])
    angle = math.pi - 0.5
    source = [math.cos(angle), math.sin(angle)]
    cosine = math.cos(angle)
    result = merge("model_stock", [0.0, 0.0], [[1.0, 0.0], source])
    share = cosine / (1 + cosine)
    close(result, [share * (1 + source[0]), share * source[1]])


def test_model_stock_by_rows() -> None:
    """With filter_wise each row has its own ratio: 1 where deltas agree, 0 where perpendicular."""
    one, other = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    result = merge("model_stock", torch.zeros(2, 2), [one, other], filter_wise=True)
    close(result.flatten(), [1.0, 0.0, 0.0, 0.0])


def test_sce_weighs_sources_by_energy() -> None:
    """Mean squares 2.5 and 1 give 0.714 and 0.286; the sign of a sum keeps who agrees."""
    close(merge("sce", [0, 0], [[1, 2], [1, -1]]), [1.0, 2.0])
    close(merge("sce", [0, 0], [[1, 2], [2, 1]]), [1.5, 1.5])


def test_sce_selects_by_variance() -> None:
    """Of the three elements that differ, a share of 0.34 keeps the one that differs most."""
    a, b = [1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 9.0, 4.1]
    close(merge("sce", ZEROS, [a, b], select_topk=0.34), [0.0, 0.0, 8.4, 0.0])


def test_sce_weighs_small_deltas_equally_only_as_mergekit_does() -> None:
    """Mean squares that sum to less than 1e-6: equal shares in mergekit, the paper's as always."""
    a, b = [3e-4, 0.0], [1e-4, 0.0]
    close(1e4 * merge("sce", [0, 0], [a, b]), [2.0, 0.0])
    close(1e4 * merge("sce", [0, 0], [a, b], semantics="paper"), [2.8, 0.0])
    big = [
        merge("sce", [0, 0], [[3.0, 0.0], [1.0, 0.0]], semantics=s) for s in ("mergekit", "paper")
    ]
    assert torch.equal(*big)


def test_ram_averages_only_what_is_shared() -> None:
    """Elements of one source are whole; the shared one is the mean; small ones are no change."""
    close(merge("ram", [0, 0, 0], [[1, 0, 2], [0, 3, 4]]), [1.0, 3.0, 3.0])
    close(merge("ram", [0, 0], [[1e-6, 1], [0, 0]]), [0.0, 1.0])


def test_ramplus_grows_what_is_not_shared() -> None:
    """Each has one own and one shared element: a ratio of 1, clamped to 0.2, gives 1.02."""
    close(merge("ramplus_tl", [0, 0, 0], [[1, 0, 2], [0, 3, 4]]), [1.02, 3.06, 3.0])
    close(merge("ramplus_tl", [0, 0], [[1, 2], [3, 4]]), [2.0, 3.0])


def test_nearswap_moves_by_t_at_most() -> None:
    """Nearer elements are taken over, in both directions; t below 0 moves nothing."""
    close(merge("nearswap", [0, 0, 0], [[0.25, 1, 2]], t=0.5), [0.25, 0.5, 0.5])
    close(merge("nearswap", [0, 0], [[-2, 2]], t=0.5), [-0.5, 0.5])
    close(merge("nearswap", [0, 0], [[-2, 2]], t=-1.0), [0.0, 0.0])


def test_arcee_fusion_keeps_what_is_important() -> None:
    """One large change in a row of small ones is beyond median + 1.5 * (q3 - q1)."""
    base, source = torch.zeros(9), torch.full((9,), 0.01)
    source[4] = 2.0
    source[0] = 0.011  # so that the quartiles are of the others
    result = merge("arcee_fusion", base, [source])
    assert float(result[4]) == 2.0


@pytest.mark.parametrize(
    ("size", "change", "tolerance"),
    [(0.05, 4e-3, 1e-5), (0.05, 1e-4, 1e-3), (1.0, 1.0, 1e-6), (20.0, 20.0, 1e-5)],
    ids=["fine-tune", "small changes", "unrelated", "peaked and unrelated"],
)
def test_arcee_fusion_has_the_divergence_of_exact_arithmetic(
    size: float, change: float, tolerance: float
) -> None:
    """The divergence of each row is that of float64, relative to it, however small or large."""
    generator = torch.Generator().manual_seed(0)
    base = size * torch.randn(64, 576, generator=generator)
    delta = change * torch.randn(64, 576, generator=generator)
    q = torch.softmax(base.double(), dim=-1) + 1e-8
    p = torch.softmax(base.double() + delta.double(), dim=-1) + 1e-8
    wanted = (p * (p / q).log()).sum(dim=-1, keepdim=True)
    actual = divergence(base, delta).double()
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=0)


def test_arcee_fusion_takes_lower_order_statistics() -> None:
    """Of 1 to 11, quartiles are 3, 6 and 8: the threshold is 6 + 1.5 * 5 = 13.5."""
    assert fusion_threshold(torch.arange(1.0, 12.0).flip(0)) == 13.5


def test_passthrough_scales_one_source() -> None:
    """Base and delta alike."""
    close(merge("passthrough", [1.0, 2.0], [[3.0, 4.0]], scale=(0.5,)), [1.5, 2.0])


def test_lines_grows_with_depth() -> None:
    """alpha at the first layer, alpha + beta at the last."""
    for depth, factor in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.75)):
        result = merge("lines", [1.0], [[3.0]], weight=(2.0,), alpha=0.25, beta=0.5, depth=depth)
        close(result, [1 + factor * 2 * 2])


def test_expo_goes_beyond_the_source() -> None:
    """x + alpha (x - W0)."""
    close(merge("expo", [1.0], [[3.0]], alpha=0.5), [4.0])
