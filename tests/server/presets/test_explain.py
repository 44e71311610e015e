"""What explain says."""

import json
from dataclasses import replace

import pytest

from server.errors import NotFoundError
from server.presets.catalog import Catalog, Edit
from tests.server.presets.tiny import preset, tiny_base


def twin_of(catalog: Catalog, **fields) -> dict:
    """The twin of a preset, from a dry run."""
    return catalog.validate(preset(**fields), edit=Edit())[1]["twin"]


def members(twin: dict) -> dict[str, float]:
    return {member["source"]: member["coefficient"] for member in twin["members"]}


def test_every_source_is_resolved_tensor_by_tensor(catalog):
    """explain gives the coefficient of each group of tensors, the path, the reason and bytes."""
    by_filter = [{"filter": "mlp", "value": 1.0}, {"value": [0.0, 0.5]}]
    fields = {"math": {"weight": 0.2}, "code": {"weight": by_filter}}
    catalog.create(preset(sources=fields, parameters={"lambda": 2.0}), edit=Edit())
    said = catalog.explain("tutor")
    code, math = said["sources"]
    assert (math["name"], math["coefficient"], math["ranks"]) == ("math", 0.4, [2])
    assert math["groups"] == [
        {"layers": [0, 1], "modules": ["self_attn.q_proj", "mlp.up_proj"], "coefficient": 0.4}
    ]
    assert {
        (tuple(g["modules"]), tuple(g["layers"]), g["coefficient"]) for g in code["groups"]
    } == {
        (("mlp.up_proj",), (0, 1), 2.0),
        (("self_attn.q_proj",), (0, 0), 0.0),
        (("self_attn.q_proj",), (1, 1), 1.0),
    }
    assert said["preset"] == "tutor"
    assert said["revision"] == 1
    assert said["path"] == "blend"
    assert "no weights are written" in said["reason"]
    assert said["num_bytes"] == sum(source["num_bytes"] for source in said["sources"]) > 0
    assert said["max_rank"] == 4


def test_it_is_plain_json(catalog):
    """What explain says can be sent as it is, and read back the same."""
    catalog.create(preset(sources={"math": {"weight": [0, 1]}}), edit=Edit())
    said = catalog.explain("tutor")
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_a_merge_of_factors_shows_what_it_is_made_of(catalog):
    """Each source's settings and share, the method's own parameters, and a twin that is near."""
    sources = {"math": {"weight": 0.25, "density": 0.5}, "code": {"weight": 0.5}}
    fields = {"method": "core_space", "sources": sources, "parameters": {"inside": "ties"}}
    catalog.create(preset(**fields), edit=Edit())
    said = catalog.explain("tutor")
    code, math = said["sources"]
    assert (math["coefficient"], math["groups"][0]["values"]) == (
        0.25,
        {"weight": 0.25, "density": 0.5},
    )
    assert said["parameters"][0]["values"] == {"inside": "ties", "normalize": False, "lambda": 1.0}
    assert (said["path"], said["max_rank"], code["ranks"]) == ("blend", 4, [2])
    assert said["twin"]["exact"] is False
    assert members(said["twin"]) == {"base": 0.25, "math": 0.25, "code": 0.5}


def test_the_twin_of_even_weights_is_exact(catalog):
    """Where no coefficient depends on the layer, the ensemble twin has the same coefficients."""
    fields = {"math": {"weight": 0.25}, "code": {"weight": 0.5}}
    twin = twin_of(catalog, sources=fields)
    assert twin["exact"] is True
    assert twin["rule"] == "task_arithmetic"
    assert members(twin) == {"base": 0.25, "math": 0.25, "code": 0.5}


def test_the_twin_of_a_gradient_is_approximate(catalog):
    """Where a coefficient depends on the layer, the twin takes the mean and is not exact."""
    twin = twin_of(catalog, sources={"math": {"weight": [0.0, 0.5]}})
    assert twin["exact"] is False
    assert members(twin) == {"base": 0.75, "math": 0.25}


def test_the_twin_of_a_normalising_method(catalog):
    """Where the method divides by the sum of weights, so are the members' coefficients."""
    fields = {"math": {"weight": 3}, "code": {"weight": 1}}
    twin = twin_of(catalog, method="linear", sources=fields)
    assert members(twin) == {"base": 0.0, "math": 0.75, "code": 0.25}


@pytest.mark.parametrize("rule", ["log_pool", "linear_pool"])
def test_pools_divide_by_the_sum(catalog, rule):
    """A pool's coefficients sum to 1, and the base is no member of it."""
    fields = {"math": {"weight": 1.5}, "code": {"weight": 0.5}}
    twin = twin_of(catalog, sources=fields, ensemble={"rule": rule})
    assert members(twin) == {"math": 0.75, "code": 0.25}


@pytest.mark.parametrize(
    ("rule", "weights", "words"),
    [
        ("log_pool", (-1, 0.5), "must sum to more than 0"),
        ("linear_pool", (1, -0.5), "no negative weight"),
    ],
)
def test_pools_that_cannot_be(catalog, rule, weights, words):
    """A pool that the weights do not allow is explained instead of computed."""
    fields = dict(zip(("math", "code"), ({"weight": w} for w in weights), strict=True))
    twin = twin_of(catalog, sources=fields, ensemble={"rule": rule})
    assert twin["members"] == []
    assert words in twin["reason"]


def test_pools_take_the_weights_themselves(catalog):
    """A pool's shares are those of the weights, whatever lambda makes of the coefficients."""
    fields = {"math": {"weight": 3}, "code": {"weight": 1}}
    for value in (-2.0, 0.0, [0.0, 1.0]):
        twin = twin_of(
            catalog, sources=fields, ensemble={"rule": "log_pool"}, parameters={"lambda": value}
        )
        assert members(twin) == {"math": 0.75, "code": 0.25}


def test_it_says_how_long_the_plan_took(catalog):
    """explain gives the seconds that building took."""
    assert 0 < catalog.validate(preset(), edit=Edit())[1]["build_seconds"] < 10


def test_the_warnings_of_sources_are_repeated(world):
    """What a source warns of is said of every preset that uses that content, by the source."""
    catalog = world.open_with_sources(base=replace(tiny_base(), hub_id="org/tiny"))
    config = world.sources / "math" / "adapter_config.json"
    config.write_text(config.read_text().replace('"tiny"', '"org/huge"'))
    catalog.replace_source("math", "math", edit=Edit())
    catalog.create(preset(sources={"math": {"weight": 1}, "code": {"weight": 1}}), edit=Edit())
    (warning,) = catalog.explain("tutor")["warnings"]
    assert warning.startswith("sources.math: it was trained on a base named 'org/huge'")
    assert catalog.validate(preset("other"), edit=Edit())[1]["warnings"] == [warning]
    world.adapter("math", 99)
    catalog.replace_source("math", "math", edit=Edit())
    assert catalog.explain("tutor", 1)["warnings"] == [warning]
    assert catalog.explain("tutor")["warnings"] == []


def test_the_twin_can_be_asked_for(catalog):
    """A recipe that has a twin says so, and there is no reason against it."""
    twin = twin_of(catalog)
    assert (twin["available"], twin["reason"], twin["ignored"]) == (True, None, [])


def test_kept_revisions_are_explained(catalog):
    """An old revision is explained as it was; one that does not exist is not found."""
    catalog.create(preset(), edit=Edit())
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    assert catalog.explain("tutor", 1)["sources"][0]["coefficient"] == 0.5
    assert catalog.explain("tutor")["sources"][0]["coefficient"] == 0.9
    with pytest.raises(NotFoundError):
        catalog.explain("tutor", 3)
    with pytest.raises(NotFoundError):
        catalog.explain("nobody")


def test_what_failed_is_explained_by_its_reasons(world):
    """A preset that cannot be built is explained by why."""
    world.open_with_sources().create(preset(), edit=Edit())
    catalog = world.open(base=tiny_base(num_layers=1, character="1"))
    said = catalog.explain("tutor")
    assert said["state"] == "failed"
    assert "no linear layer" in said["reasons"][0]
