"""From model strings and overrides to weights."""

import pytest

from server.errors import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    UnprocessableError,
)
from server.presets.catalog import Edit
from server.presets.ensemble_settings import MemberSettings
from server.presets.policy import Policy
from server.presets.served import Overrides
from tests.server.presets.tiny import CLOSED_POLICY, preset

BOTH = {"math": {"weight": 0.25}, "code": {"weight": [0.0, 1.0]}}


@pytest.fixture
def tutor(catalog):
    """A catalog with tutor, of two sources."""
    catalog.create(preset(sources=BOTH, defaults={"temperature": 0.7}), edit=Edit())
    return catalog


def coefficients(catalog, served) -> dict[str, list[float]]:
    """The blend's coefficients by source name."""
    names = {card.digest: card.name for card in catalog.sources()}
    (blend,) = (member.weights for member in served.members)
    rows = zip(blend.adapters, blend.coefficients.tolist(), strict=True)
    return {names[adapter.digest]: row for adapter, row in rows}


@pytest.mark.parametrize("model", ["base", "tiny"])
def test_the_base(tutor, model):
    """The base is called by its id or as `base`: no preset, no revision, no delta."""
    served = tutor.resolve(model)
    assert (served.model, served.label) == (model, model)
    assert (served.preset, served.revision, served.mode, served.path) == (
        None,
        None,
        "merge",
        "base",
    )
    assert coefficients(tutor, served) == {}
    assert served.digest == tutor.resolve("base").digest


@pytest.mark.parametrize("model", ["tutor", "tutor@1", "tutor:merge", "tutor@1:merge"])
def test_a_preset(tutor, model):
    """A preset is called by name, with or without its revision and its mode."""
    served = tutor.resolve(model)
    assert (served.model, served.label) == (model, "tutor@1")
    assert (served.preset, served.revision, served.mode, served.path) == (
        "tutor",
        1,
        "merge",
        "blend",
    )
    assert served.digest == tutor.preset("tutor").digest
    assert served.defaults.temperature == 0.7
    assert coefficients(tutor, served) == {
        "math": [0.25, 0.25, 0.25, 0.25],
        "code": [0.0, 0.0, 1.0, 1.0],
    }


def test_a_source(tutor):
    """A bare source is that adapter alone at weight 1."""
    served = tutor.resolve("math")
    assert (served.label, served.preset, served.path) == ("math", None, "blend")
    assert coefficients(tutor, served) == {"math": [1.0, 1.0, 1.0, 1.0]}
    assert served.defaults.model_dump(exclude_none=True) == {}


@pytest.mark.parametrize(
    "model",
    [
        "nobody",
        "nobody@1",
        "Tutor",
        "math@1",
        "base@1",
        "base:merge",
        "tiny:ensemble",
        "tutor@x",
        "tutor@0",
        "",
    ],
)
def test_what_cannot_be_called(tutor, model):
    """A string that names nothing is an unknown model, never the base in silence."""
    with pytest.raises(NotFoundError) as caught:
        tutor.resolve(model)
    assert caught.value.code == "model_not_found"


def test_a_revision_that_is_not_there(tutor):
    """A revision that does not exist is not found, with the newest one."""
    with pytest.raises(NotFoundError, match="its newest is 1"):
        tutor.resolve("tutor@2")


def test_weights_are_overridden_for_one_request(tutor):
    """Overridden sources get their weight, the others keep theirs, and the digest is of both."""
    served = tutor.resolve("tutor", Overrides(weights={"code": 0.5}))
    assert coefficients(tutor, served) == {"math": [0.25] * 4, "code": [0.5] * 4}
    assert served.label == "tutor@1"
    assert served.digest != tutor.preset("tutor").digest
    assert tutor.resolve("tutor").digest == tutor.preset("tutor").digest
    equal = preset("equal", sources={"math": {"weight": 0.25}, "code": {"weight": 0.5}})
    assert tutor.create(equal, edit=Edit()).digest == served.digest


def test_overriding_with_the_same_weights_is_the_same(tutor):
    """Weights that the preset has already give its own digest, and so does no weight at all."""
    for weights in ({"math": 0.25}, {}):
        served = tutor.resolve("tutor", Overrides(weights=weights))
        assert served.digest == tutor.preset("tutor").digest


def test_repeated_overrides_are_planned_once(tutor):
    """Requests that repeat their weights get the same blend object."""
    first, second = (tutor.resolve("tutor", Overrides(weights={"math": 3})) for _ in range(2))
    assert first.members[0].weights is second.members[0].weights


def test_overrides_of_an_old_revision(tutor):
    """An old revision takes overrides on its own sources."""
    tutor.replace("tutor", preset(sources={"math": {"weight": 1}}), edit=Edit())
    served = tutor.resolve("tutor@1", Overrides(weights={"code": 2}))
    assert coefficients(tutor, served) == {"math": [0.25] * 4, "code": [2.0] * 4}
    with pytest.raises(InvalidRequestError, match="no source 'code'; it has math"):
        tutor.resolve("tutor", Overrides(weights={"code": 2}))


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ({"nope": 1.0, "zzz": 1.0}, InvalidRequestError, "'nope', 'zzz'; it has code, math"),
        ({"base": 1.0}, InvalidRequestError, "no source 'base'"),
        ({"math": float("nan")}, InvalidRequestError, "finite"),
        ({"math": float("-inf")}, InvalidRequestError, "finite"),
        ({"math": 10**400}, InvalidRequestError, "finite"),
        ({"math": "1"}, InvalidRequestError, "number"),
        ({"math": True}, InvalidRequestError, "number"),
        ({"math": 1e300}, UnprocessableError, "float32"),
    ],
)
def test_weights_that_cannot_be(tutor, weights, error, words):
    """Weights of unknown sources, or that are no finite numbers, are refused."""
    with pytest.raises(error, match=words):
        tutor.resolve("tutor", Overrides(weights=weights))


@pytest.mark.parametrize("model", ["math", "base"])
def test_only_presets_have_weights(tutor, model):
    """The base and bare sources have no weights to override."""
    with pytest.raises(InvalidRequestError, match="they belong to presets"):
        tutor.resolve(model, Overrides(weights={"math": 1.0}))


def test_modes_that_do_not_exist(tutor):
    """An unknown mode is refused with those that exist; two different ones contradict."""
    with pytest.raises(InvalidRequestError, match="there are merge, ensemble"):
        tutor.resolve("tutor", Overrides(mode="both"))
    with pytest.raises(InvalidRequestError, match="give one of them"):
        tutor.resolve("tutor:ensemble", Overrides(mode="merge"))
    assert tutor.resolve("tutor:merge", Overrides(mode="merge")).mode == "merge"


@pytest.mark.parametrize("model", ["tutor", "math", "base"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rule", "log_pool"),
        ("temperature_order", "after"),
        ("plausibility_alpha", 0.0),
        ("members", {"base": MemberSettings(system="be brief")}),
    ],
)
def test_a_merge_has_no_rule(tutor, model, field, value):
    """What says how ensembles combine would be ignored with a merge, so it is refused."""
    with pytest.raises(InvalidRequestError, match=rf"mergeserve\.{field}"):
        tutor.resolve(model, Overrides(**{field: value}))


def recipe(**fields) -> dict:
    return {"method": "task_arithmetic", "sources": {"math": {"weight": 0.25}}, **fields}


@pytest.mark.parametrize("model", ["base", "tiny"])
def test_a_recipe_without_a_preset(tutor, model):
    """A recipe in the request needs no preset: the model is the base, the digest the recipe's."""
    served = tutor.resolve(model, Overrides(recipe=recipe(sources=BOTH)))
    assert (served.label, served.preset, served.path) == (model, None, "blend")
    assert served.digest == tutor.preset("tutor").digest


@pytest.mark.parametrize(
    ("model", "overrides", "error", "words"),
    [
        ("tutor", Overrides(recipe=recipe()), InvalidRequestError, "model must be the base"),
        (
            "base",
            Overrides(recipe=recipe(), weights={"math": 1.0}),
            InvalidRequestError,
            "a recipe has no weights",
        ),
        ("base", Overrides(recipe={}), InvalidRequestError, "sources"),
        ("base", Overrides(recipe=recipe(foo=1)), InvalidRequestError, "foo"),
        ("base", Overrides(recipe=recipe(method="tiez")), InvalidRequestError, "tiez"),
        (
            "base",
            Overrides(recipe=recipe(sources={"nope": {"weight": 1}})),
            UnprocessableError,
            "sources.nope: is not a registered source; registered are: code, math",
        ),
        (
            "base",
            Overrides(recipe=recipe(sources={"math": {"weight": float("nan")}, "nope": {}})),
            InvalidRequestError,
            "finite.*sources.nope.weight: is missing; sources.nope: is not a registered source",
        ),
    ],
)
def test_recipes_that_cannot_be(tutor, model, overrides, error, words):
    """A recipe beside a preset or with overrides, or that cannot be built, is refused."""
    with pytest.raises(error, match=words):
        tutor.resolve(model, overrides)


def test_a_closed_server_allows_nothing_but_presets(world, tutor):
    """With everything closed each refusal is a 403 that names the setting; presets still serve."""
    closed = world.open(policy=CLOSED_POLICY)
    assert closed.resolve("tutor").label == "tutor@1"
    assert closed.resolve("tutor:merge", Overrides(mode="merge")).label == "tutor@1"
    assert closed.resolve("base").path == "base"
    for model, overrides, setting in (
        ("tutor", Overrides(weights={"math": 1.0}), "--overrides is 'none'"),
        ("tutor", Overrides(mode="ensemble"), "--overrides is 'none'"),
        ("tutor:ensemble", None, "--overrides is 'none'"),
        ("base", Overrides(recipe=recipe()), "--inline-recipes is 'off'"),
        ("math", None, "--serve-sources is 'no'"),
    ):
        with pytest.raises(ForbiddenError, match=setting) as caught:
            closed.resolve(model, overrides)
        assert caught.value.status == 403


def test_the_mode_alone_may_be_allowed(world, tutor):
    """`mode` lets callers change the mode and not the weights."""
    catalog = world.open(policy=Policy("mode", "off", False))
    assert catalog.resolve("tutor:ensemble", Overrides(rule="log_pool")).mode == "ensemble"
    with pytest.raises(ForbiddenError, match="--overrides is 'mode'"):
        catalog.resolve("tutor", Overrides(weights={"math": 1.0}))


def test_a_preset_has_the_last_word_on_overrides(world, tutor):
    """A preset's own `overrides` wins over the server's, in both directions, and is named."""
    tutor.create(preset("shut", overrides="none"), edit=Edit())
    tutor.create(preset("open", overrides="weights"), edit=Edit())
    with pytest.raises(ForbiddenError, match="its `overrides` is 'none'"):
        tutor.resolve("shut", Overrides(weights={"math": 1.0}))
    closed = world.open(policy=CLOSED_POLICY)
    assert closed.resolve("open", Overrides(weights={"math": 1.0})).label == "open@1"
    with pytest.raises(ForbiddenError, match="--overrides"):
        closed.resolve("tutor", Overrides(weights={"math": 1.0}))
