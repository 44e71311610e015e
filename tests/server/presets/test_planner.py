"""From documents to plans."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from server.errors import InvalidRequestError, UnprocessableError
from server.presets.document import PresetDocument
from server.presets.planner import NUM_RECENT, Planner, parse_recipe, used_sources
from server.presets.sources import Source, SourceRegistry
from tests.server.presets.tiny import digest, preset, tiny_base, write_adapter

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    """Two that work and one that does not."""
    registry, result = SourceRegistry(tiny_base()), {}
    for seed, name in enumerate(("math", "code")):
        path = write_adapter(tmp_path / name, seed)
        adapter, _ = registry.read(path)
        result[name] = Source(name, path, adapter.digest, adapter, None, NOON, NOON)
    result["broken"] = Source(
        "broken", tmp_path / "broken", digest("f"), None, None, NOON, NOON, ("its folder is gone",)
    )
    return result


@pytest.fixture
def planner() -> Planner:
    return Planner(tiny_base())


def test_a_document_becomes_a_blend(planner, sources):
    """The weights of the document are the blend's coefficients."""
    document = preset(sources={"math": {"weight": 0.25}, "code": {"weight": [0.0, 1.0]}})
    plan = planner.plan_document(document, sources)
    by_digest = dict(
        zip([a.digest for a in plan.blend.adapters], plan.blend.coefficients, strict=True)
    )
    assert torch.equal(by_digest[sources["math"].digest], torch.full((4,), 0.25))
    assert torch.equal(by_digest[sources["code"].digest], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert plan.path == "blend"


def test_a_source_alone_has_weight_one(planner, sources):
    """A bare source is its adapter at weight 1, and digests like a preset that says the same."""
    plan = planner.plan_source("math", sources["math"].content)
    same = planner.plan_document(preset(sources={"math": {"weight": 1}}), sources)
    assert torch.equal(plan.blend.coefficients, torch.ones(1, 4))
    assert plan.blend.digest == same.blend.digest


def test_unknown_and_broken_sources_are_all_named(planner, sources):
    """A recipe with sources that cannot be used is refused with each of them, and those known."""
    document = preset(sources={name: {"weight": 1} for name in ("math", "nope", "broken", "never")})
    with pytest.raises(UnprocessableError) as caught:
        planner.plan_document(document, sources)
    message = caught.value.message
    for part in ("sources.nope", "sources.never", "its folder is gone", "broken, code, math"):
        assert part in message
    assert (caught.value.status, caught.value.param) == (422, "sources.broken")


def test_every_kind_of_reason_is_listed(planner, sources):
    """What the recipe, the sources and the plan refuse comes in one error."""
    document = preset(sources={"nope": {"weight": 1}, "math": {"weight": 1}}, base_model=None)
    with pytest.raises(UnprocessableError) as caught:
        planner.plan_document(document, sources)
    for part in ("base_model: task_arithmetic needs one", "sources.nope: is not"):
        assert part in caught.value.message
    malformed = preset(sources={"nope": {"weight": "x"}, "broken": {"weight": 1}})
    with pytest.raises(InvalidRequestError) as refused:
        planner.plan_document(malformed, sources)
    for part in ("sources.nope.weight: must", "sources.nope: is not", "sources.broken: cannot be"):
        assert part in refused.value.message
    assert refused.value.param == "sources.nope.weight"


def test_without_sources_the_error_says_none(planner):
    """With nothing registered the list of those that exist is none."""
    with pytest.raises(UnprocessableError, match="registered are: none"):
        planner.plan_document(preset(), {})


def test_malformed_recipes_are_bad_requests(planner, sources):
    """What the recipe refuses is a 400 that points to the field."""
    with pytest.raises(InvalidRequestError, match="tiez") as caught:
        planner.plan_document(preset(method="tiez"), sources)
    assert caught.value.param == "method"
    with pytest.raises(InvalidRequestError) as caught:
        parse_recipe(preset(sources={"math": {"weight": "x"}, "code": {}}))
    assert caught.value.param == "sources.math.weight"
    assert "sources.code.weight" in caught.value.message


def test_what_cannot_be_built_is_unprocessable(planner, sources):
    """What the plan refuses is a 422 with the reason."""
    document = preset(method="linear", sources={"math": {"weight": 1}, "code": {"weight": -1}})
    with pytest.raises(UnprocessableError, match="sum to 0"):
        planner.plan_document(document, sources)
    with pytest.raises(UnprocessableError, match="float32"):
        planner.plan_document(preset(sources={"math": {"weight": 1e300}}), sources)


def test_a_preset_is_the_same_both_ways(planner, sources):
    """A document of mode ensemble has the plan of its merge: mode and rule are not in the digest,
    and what could not be merged is refused.
    """
    fields = {"mode": "ensemble", "ensemble": {"rule": "log_pool"}}
    plan = planner.plan_document(preset(**fields), sources)
    assert plan.digest == planner.plan_document(preset(), sources).digest
    with pytest.raises(UnprocessableError, match="not a registered source"):
        planner.plan_document(preset(mode="ensemble", sources={"nope": {"weight": 1}}), sources)


def test_an_ensemble_needs_its_rule_to_be_possible(planner, sources):
    """A preset of mode ensemble whose weights its rule cannot use is refused with the reason."""
    fields = {"sources": {"math": {"weight": -1.0}}, "ensemble": {"rule": "linear_pool"}}
    with pytest.raises(InvalidRequestError, match="no negative weights, got -1 for math"):
        planner.plan_document(preset(mode="ensemble", **fields), sources)
    assert planner.plan_document(preset(**fields), sources).path == "blend"


def test_the_base_is_no_source_to_look_up(planner, sources):
    """`base` among the sources is the resident base, which needs no registration."""
    document = preset(method="linear", sources={"math": {"weight": 1}, "base": {"weight": 1}})
    assert used_sources(document) == {"math"}
    plan = planner.plan_document(document, sources)
    assert torch.equal(plan.blend.coefficients, torch.full((1, 4), 0.5))


def test_plans_are_remembered(planner, sources):
    """The same recipe on the same contents is planned once; names and contents tell plans apart."""
    first = planner.plan_document(preset(), sources)
    assert planner.plan_document(preset("other", description="x"), sources) is first
    renamed = {"code": sources["math"]}
    other = planner.plan_document(preset(sources={"code": {"weight": 0.5}}), renamed)
    assert other is not first
    assert other.blend.digest == first.blend.digest
    assert set(other.coefficients) == {"code"}
    swapped = {"math": sources["code"]}
    assert planner.plan_document(preset(), swapped).blend.digest != first.blend.digest


def test_an_edit_of_a_core_space_merge_needs_no_svd(planner, sources, monkeypatch):
    """What does not depend on weights is kept between plans."""

    def core(weight: float) -> PresetDocument:
        both = {"math": {"weight": weight}, "code": {"weight": 0.5}}
        return preset(method="core_space", sources=both)

    planner.plan_document(core(0.2), sources)
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **options: pytest.fail("an SVD"))
    plan = planner.plan_document(core(0.3), sources)
    assert plan.path == "blend"
    assert len(plan.blend.adapters) == 1


def test_plans_of_a_content_are_forgotten(planner, sources):
    """When a content leaves the memory, so do the plans that hold it, and no others."""
    math = planner.plan_document(preset(), sources)
    code = planner.plan_document(preset(sources={"code": {"weight": 1}}), sources)
    planner.forget(sources["math"].digest)
    assert planner.plan_document(preset(), sources) is not math
    assert planner.plan_document(preset(sources={"code": {"weight": 1}}), sources) is code


def test_the_memory_of_plans_is_bounded(planner, sources):
    """However many weights are asked for, only the most recent plans stay."""
    first = planner.plan_document(preset(), sources)
    for number in range(NUM_RECENT):
        planner.plan_document(preset(sources={"math": {"weight": number + 1.0}}), sources)
    assert planner.plan_document(preset(), sources) is not first
