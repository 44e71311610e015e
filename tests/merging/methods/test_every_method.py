"""What holds for every method, by what it says of itself; a new method needs no code here."""

import json
from collections.abc import Mapping

import pytest
import torch

from merging.methods import METHODS
from merging.methods.apply import merge_tensor
from merging.methods.method import Method
from merging.setting import Scalar
from tests.merging.methods.one_tensor import values_of

SHAPES = ((), (1,), (5,), (4, 6), (6, 1), (2, 3, 4))
IDENTITY: Mapping[str, Mapping[str, float]] = {
    "slerp": {"t": 1.0},
    "nearswap": {"t": 100.0},
    "expo": {"alpha": 0.0},
    "lines": {"alpha": 1.0, "beta": 0.0},
}
"""Values at which the docs of methods without a default say that a source comes out whole."""
NO_IDENTITY = {"arcee_fusion"}

TENSOR_METHODS = [m for m in METHODS.values() if m.kind != "low_rank"]
"""Those that merge tensors; the others have factors: see test_every_low_rank_method.py."""

every_method = pytest.mark.parametrize("method", TENSOR_METHODS, ids=lambda m: m.name)
random_methods = pytest.mark.parametrize(
    "method", [m for m in TENSOR_METHODS if m.is_random], ids=lambda m: m.name
)
pointwise_methods = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.pointwise], ids=lambda m: m.name
)
batched_methods = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.batched], ids=lambda m: m.name
)


def tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count_of(method: Method) -> int:
    """Three sources, if the method takes them."""
    return min(3, method.max_sources or 3)


def settings(method: Method, count: int) -> dict[str, Scalar | tuple[Scalar, ...]]:
    """Different values for each source, and every trim and random choice at work."""
    values = values_of(method, count)
    own = {"weight": (0.6, 0.5, -0.2), "density": (0.5, 0.4, 0.7), "gamma": (0.1, 0.2, 0.0)}
    return values | {name: v[:count] for name, v in own.items() if name in values}


def merged(
    method: Method,
    base: torch.Tensor,
    deltas: list[torch.Tensor],
    values: Mapping[str, Scalar | tuple[Scalar, ...]],
    seed: int = 0,
    digests: list[str] | None = None,
) -> torch.Tensor:
    names = [f"digest {i}" for i in range(len(deltas))] if digests is None else digests
    return merge_tensor(
        method, values, base, deltas, seed=seed, digests=names, tensor_name="w.weight"
    )


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_it_describes_itself(method: Method) -> None:
    """describe() is plain JSON with a text for the method and each parameter, and kinds that a
    client knows; defaults are valid settings.
    """
    described = method.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert METHODS[method.name] is method
    assert method.paper.startswith("https://")
    assert method.title
    assert method.description
    for parameter in method.parameters:
        assert parameter.doc.description
        assert parameter.type in ("number", "integer", "boolean", "choice")
        assert (parameter.type == "choice") == bool(parameter.choices)
        if not parameter.required:
            default = parameter.describe()["default"]
            assert parameter.parse(default, "p") == parameter.default_setting


@every_method
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_is_finite_float32_of_the_same_shape(
    method: Method, shape: tuple[int, ...]
) -> None:
    """For 0-d to 3-d tensors, also those with a dimension of 1, and inputs stay as they are."""
    base = tensor(*shape, seed=1)
    deltas = [tensor(*shape, seed=2 + i) for i in range(count_of(method))]
    before = [base.clone(), *(delta.clone() for delta in deltas)]
    result = merged(method, base, deltas, settings(method, len(deltas)))
    assert result.dtype == torch.float32
    assert result.shape == shape
    assert torch.isfinite(result).all()
    assert all(torch.equal(a, b) for a, b in zip([base, *deltas], before, strict=True))


@every_method
def test_the_order_of_sources_does_not_matter(method: Method) -> None:
    """Bit for bit, when each source keeps its digest and its values."""
    count, base = count_of(method), tensor(8, 9, seed=1)
    deltas, digests = [tensor(8, 9, seed=2 + i) for i in range(count)], ["c", "a", "b"][:count]
    values = settings(method, count)
    backwards = {n: v[::-1] if isinstance(v, tuple) else v for n, v in values.items()}
    one = merged(method, base, deltas, values, digests=digests)
    other = merged(method, base, deltas[::-1], backwards, digests=digests[::-1])
    assert torch.equal(one, other)


@every_method
def test_a_source_at_weight_one_is_that_source(method: Method) -> None:
    """With density 1 and weight 1 (or as many equal sources as the method needs) it comes out."""
    if method.name in NO_IDENTITY:
        pytest.skip("the method always drops what matters little")
    count, base, delta = method.min_sources, tensor(8, 9, seed=1), tensor(8, 9, seed=2)
    values = values_of(method, count, **IDENTITY.get(method.name, {}))
    if "normalize" in values and count > 1:
        values["normalize"] = True
    result = merged(method, base, [delta] * count, values, digests=["same"] * count)
    changed = delta.abs() > 1e-3  # RAM takes smaller changes for none
    torch.testing.assert_close(result[changed], (base + delta)[changed], rtol=1e-6, atol=2e-6)


@every_method
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_without_deltas_the_base_stays(method: Method, size: float) -> None:
    """Sources that equal the base change nothing, also where the base is all zeros."""
    base, count = size * tensor(4, 5, seed=1), count_of(method)
    result = merged(method, base, [torch.zeros(4, 5)] * count, values_of(method, count))
    torch.testing.assert_close(result, base, rtol=1e-6, atol=1e-6)


@every_method
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4])
def test_the_size_of_deltas_breaks_nothing(method: Method, size: float) -> None:
    """Tiny and huge deltas, of which one is zero, give finite tensors."""
    base, count = tensor(4, 5, seed=1), count_of(method)
    deltas = [size * tensor(4, 5, seed=2 + i) for i in range(count)]
    deltas[-1] = torch.zeros(4, 5)
    assert torch.isfinite(merged(method, base, deltas, settings(method, count))).all()


@random_methods
def test_random_choices_follow_the_seed_and_the_source(method: Method) -> None:
    """The same seed gives the same bits; another seed or content of the source gives others."""
    base, delta, values = tensor(20, 30, seed=1), tensor(20, 30, seed=2), settings(method, 1)
    one = merged(method, base, [delta], values, seed=5)
    assert torch.equal(merged(method, base, [delta], values, seed=5), one)
    assert not torch.equal(merged(method, base, [delta], values, seed=6), one)
    assert not torch.equal(merged(method, base, [delta], values, seed=5, digests=["x"]), one)


@every_method
def test_only_random_methods_look_at_the_seed(method: Method) -> None:
    """A method that is not marked as random gives the same under every seed."""
    if method.is_random:
        pytest.skip("random")
    base, deltas = tensor(6, 7, seed=1), [tensor(6, 7, seed=2 + i) for i in range(count_of(method))]
    values = settings(method, len(deltas))
    one, other = (merged(method, base, deltas, values, seed=seed) for seed in (1, 2))
    assert torch.equal(one, other)


@every_method
def test_inputs_stay_as_they_are(method: Method) -> None:
    """Whatever a method does with its trimmed deltas: those that it was given may be kept."""
    count, base = count_of(method), tensor(6, 7, seed=1)
    deltas = [tensor(6, 7, seed=2 + i) for i in range(count)]
    before = [t.clone() for t in (base, *deltas)]
    for density in (0.5, 1.0):
        values = settings(method, count)
        values |= {"density": (density,) * count} if "density" in values else {}
        merged(method, base, deltas, values)
    assert all(torch.equal(*pair) for pair in zip(before, (base, *deltas), strict=True))


@pointwise_methods
def test_pointwise_methods_merge_slices_alike(method: Method) -> None:
    """Slices of the flattened tensors, merged one by one, give the whole, bit for bit."""
    count, base = count_of(method), tensor(101, seed=1)
    deltas = tuple(tensor(101, seed=2 + i) for i in range(count))
    values = settings(method, count)
    parts = [
        method.merge_deltas(base[a : a + 13], tuple(d[a : a + 13].clone() for d in deltas), values)
        for a in range(0, 101, 13)
    ]
    assert torch.equal(torch.cat(parts), method.merge_deltas(base, deltas, values))


@every_method
def test_a_trim_needs_no_weight(method: Method) -> None:
    """So that a trimmed delta can be kept while weights change."""
    if method.trim is not None:
        assert "weight" not in method.trim.parameters
        assert set(method.trim.parameters) <= {p.name for p in method.parameters}


@batched_methods
def test_vectors_at_once_are_combined_as_one_by_one(method: Method) -> None:
    """Also with some that are zero, equal or opposite, where others are not."""
    count = count_of(method)
    vectors = tensor(6, count + 1, 20, seed=1).double()
    vectors[1, 1] = 0
    vectors[2] = 0
    vectors[3, 1:] = vectors[3, :1]
    vectors[4, 0], vectors[4, 1:] = 0, vectors[4, 1:2].clone()
    vectors[5, count] = -vectors[5, 1]
    grams, values = vectors @ vectors.mT, settings(method, count)
    for whole in (False, True):
        at_once = method.combine_gram(grams, values, whole=whole)
        for index, gram in enumerate(grams):
            alone = method.combine_gram(gram, values, whole=whole)
            pairs = zip(
                (at_once.base_scale, *at_once.coefficients),
                (alone.base_scale, *alone.coefficients),
                strict=True,
            )
            for many, one in pairs:
                own = many[index] if isinstance(many, torch.Tensor) else many
                assert float(own) == pytest.approx(float(one), rel=1e-9, abs=1e-9)
