"""From presets and overrides to the members of an ensemble."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import (
    ForbiddenError,
    InvalidRequestError,
    UnavailableError,
    UnprocessableError,
)
from server.presets import jobs
from server.presets.builder import Builder
from server.presets.catalog import Catalog, Edit
from server.presets.ensemble_settings import MemberSettings
from server.presets.policy import Policy
from server.presets.served import Overrides, Served
from server.presets.snapshot import Serving
from tests.server.presets.forge import TIES, WHOLE, VariantWorld
from tests.server.presets.tiny import preset

SOURCES = {"math": {"weight": 0.25}, "code": {"weight": 0.5}}
ENSEMBLE = Overrides(mode="ensemble")


@pytest.fixture
def tutor(catalog: Catalog) -> Catalog:
    """A catalog with tutor, a merge of two adapters."""
    catalog.create(preset(sources=SOURCES, parameters={"lambda": 2.0}), edit=Edit())
    return catalog


@pytest.fixture
def variants(tmp_path: Path) -> Iterator[VariantWorld]:
    """A world with checkpoints."""
    (tmp_path / "variants").mkdir()
    world = VariantWorld(tmp_path / "variants")
    yield world
    world.close()


def rows(served: Served) -> dict[str, float]:
    """The coefficients of the rows that run, in their order."""
    assert served.combination is not None
    rule = served.combination.compile()
    assert rule.rows == tuple(member.name for member in served.members)
    return dict(zip(rule.rows, rule.coefficients, strict=True))


def asked(**fields) -> Overrides:
    return Overrides(mode="ensemble", **fields)


@pytest.mark.parametrize(
    ("model", "overrides"),
    [("tutor:ensemble", None), ("tutor@1:ensemble", None), ("tutor", ENSEMBLE)],
)
def test_the_twin_of_a_merge(tutor, model, overrides):
    """However it is asked for: members are the sources and the base, with lambda times weight;
    the digest is the merge's, which mode and rule are not in.
    """
    served = tutor.resolve(model, overrides)
    assert rows(served) == {"base": -0.5, "code": 1.0, "math": 0.5}
    assert (served.mode, served.path, served.label) == ("ensemble", "ensemble", "tutor@1")
    assert served.digest == tutor.resolve("tutor").digest
    assert served.is_exact


def test_each_member_runs_its_source_alone(tutor):
    """A member's weights are those of its source called by name, so that they share prefixes."""
    served = tutor.resolve("tutor:ensemble")
    for member in served.members:
        (alone,) = tutor.resolve(member.name).members
        assert member.weights.digest == alone.weights.digest


def test_a_pool_divides_the_weights_by_their_sum(tutor):
    """The rule may be the request's; pools take the weights themselves, and have no base."""
    served = tutor.resolve("tutor", asked(rule="linear_pool"))
    assert rows(served) == {"code": pytest.approx(2 / 3), "math": pytest.approx(1 / 3)}


def test_members_that_do_not_count_are_not_run(tutor):
    """A source of weight zero has no row, and neither has the base where all sum to one."""
    tutor.create(preset("one", sources={"math": {"weight": 1}, "code": {"weight": 0}}), edit=Edit())
    assert rows(tutor.resolve("one:ensemble")) == {"math": 1.0}
    nothing = {"math": {"weight": 0}, "code": {"weight": 0}}
    tutor.create(preset("none", sources=nothing), edit=Edit())
    assert rows(tutor.resolve("none:ensemble")) == {"base": 1.0}


def test_weights_of_the_request(tutor):
    """They are the recipe's, as in a merge: lambda applies, the others keep theirs, and the digest
    is the effective one.
    """
    served = tutor.resolve("tutor", asked(weights={"math": 1.0}))
    assert rows(served) == {"base": -2.0, "code": 1.0, "math": 2.0}
    assert served.digest == tutor.resolve("tutor", Overrides(weights={"math": 1.0})).digest
    with pytest.raises(InvalidRequestError, match="has no source 'sql'; it has code, math"):
        tutor.resolve("tutor", asked(weights={"sql": 1.0}))


def test_a_preset_can_run_as_an_ensemble(catalog):
    """A preset's own mode, rule and parameters of the rule; its merge can still be asked for."""
    ensemble = {"rule": "log_pool", "plausibility_alpha": 0.1}
    record = catalog.create(
        preset(sources=SOURCES, mode="ensemble", ensemble=ensemble), edit=Edit()
    )
    assert (record.path, record.state) == ("ensemble", "ready")
    served = catalog.resolve("tutor")
    assert served.mode == "ensemble"
    assert (served.combination.rule, served.combination.plausibility_alpha) == ("log_pool", 0.1)
    assert catalog.resolve("tutor:merge").path == "blend"


def test_elementwise_and_layer_wise_twins_are_approximate(catalog):
    """A coefficient that depends on the layer counts with its mean, and the answer says so."""
    catalog.create(preset(sources={"math": {"weight": [0.0, 0.5]}}), edit=Edit())
    served = catalog.resolve("tutor:ensemble")
    assert rows(served) == {"base": 0.75, "math": 0.25}
    assert not served.is_exact


def test_explain_says_what_only_the_merge_has(variants):
    """Parameters that do not reach the twin are named, and the twin is approximate."""
    catalog = variants.open_with_sources()
    catalog.create(preset(**TIES), edit=Edit())
    twin = catalog.explain("tutor")["twin"]
    assert (twin["available"], twin["exact"], twin["ignored"]) == (True, False, ["density"])


def test_methods_without_weights_need_them_given(variants):
    """They may come from the preset's ensemble section or from the request; else 400."""
    catalog = variants.open_with_sources()
    fields = {"method": "slerp", "parameters": {"t": 0.5}, "ensemble": {"rule": "log_pool"}}
    fields |= {"base_model": "ft", "sources": {"math": {}}}
    with pytest.raises(InvalidRequestError, match="members ft, math have no weight"):
        catalog.create(preset(mode="ensemble", **fields), edit=Edit())
    catalog.create(preset(**fields), edit=Edit())
    assert "have no weight" in catalog.explain("tutor")["twin"]["reason"]
    served = catalog.resolve("tutor", asked(weights={"ft": 1, "math": 3}))
    assert rows(served) == {"ft": 0.25, "math": 0.75}
    members = {"ft": {"weight": 1}, "math": {"weight": 1}}
    fields["ensemble"] = {"rule": "log_pool", "members": members}
    catalog.create(preset("given", mode="ensemble", **fields), edit=Edit())
    assert rows(catalog.resolve("given")) == {"ft": 0.5, "math": 0.5}


@pytest.fixture
def guided(catalog: Catalog) -> Catalog:
    """A preset with a negative member: the base under another system prompt."""
    members = {"negative": {"model": "base", "weight": -0.5, "system": "Be vague."}}
    document = preset(sources=SOURCES, mode="ensemble", ensemble={"members": members})
    catalog.create(document, edit=Edit())
    return catalog


def test_a_member_with_a_system_prompt_of_its_own(guided):
    """It is a row beside the recipe's members; rows that read the request's prompt come first."""
    served = guided.resolve("tutor")
    assert rows(served) == {"base": 0.75, "code": 0.5, "math": 0.25, "negative": -0.5}
    assert [member.system for member in served.members] == [None, None, None, "Be vague."]
    assert not served.is_exact
    assert served.digest != guided.resolve("tutor:merge").digest


def test_the_request_changes_members_field_by_field(guided):
    """What a request says of a member takes the place of the preset's, and the rest stays."""
    members = {"negative": MemberSettings(weight=-1.0), "base": MemberSettings(system="")}
    served = guided.resolve("tutor", Overrides(members=members))
    assert rows(served)["negative"] == -1.0
    assert {member.name: member.system for member in served.members} == {
        "code": None,
        "math": None,
        "base": "",
        "negative": "Be vague.",
    }


def test_presets_as_members(tutor):
    """A member may be another preset's merge, at the revision that is named or now."""
    members = {"tutor": MemberSettings(weight=1.0), "again": MemberSettings(model="tutor@1")}
    served = tutor.resolve("base", asked(rule="linear_pool", members=members, weights={"again": 3}))
    assert rows(served) == {"again": 0.75, "tutor": 0.25}
    merged = tutor.resolve("tutor").digest
    assert [member.weights.digest for member in served.members] == [merged] * 2


def test_equal_ensembles_have_equal_digests(tutor):
    """The digest of members that were added is of their weights, whatever they are called."""
    first, second = (
        tutor.resolve("base", asked(members={name: MemberSettings(model="math", weight=1.5)}))
        for name in ("a", "b")
    )
    assert first.digest == second.digest != tutor.resolve("base").digest


@pytest.mark.parametrize(
    ("model", "overrides", "words"),
    [
        ("tutor", asked(rule="vote"), "there are task_arithmetic, log_pool, linear_pool"),
        ("tutor", asked(rule="log_pool", weights={"math": -1, "code": 0}), "sum to more than 0"),
        ("tutor", asked(rule="linear_pool", weights={"math": -1}), "no negative weights, got -1"),
        ("tutor", asked(rule="linear_pool", plausibility_alpha=0.1), "plausibility_alpha is for"),
        ("tutor", asked(members={"sql": MemberSettings(weight=1.0)}), "'sql' does not exist"),
        ("tutor", asked(members={"negative": MemberSettings(model="base")}), "negative have no"),
        ("tutor", asked(members={"math": MemberSettings(model="code")}), "math is a source"),
        ("tutor", asked(members={"base": MemberSettings(weight=1.0)}), "takes no weight"),
        ("tutor", asked(members={"base": MemberSettings(model="math")}), "is the resident base"),
        (
            "base",
            asked(members={"x": MemberSettings(model="tutor:ensemble", weight=1.0)}),
            "no ensembles as members: its merge is tutor:merge",
        ),
        (
            "base",
            asked(members={"math": MemberSettings(weight=1.0, prompt="x")}),
            "none would read the request's",
        ),
        ("base", ENSEMBLE, "the base is one model, and no ensemble"),
        ("math", ENSEMBLE, "is one model, and no ensemble"),
        ("math:ensemble", None, "is one model, and no ensemble"),
        ("base", asked(members={"math": MemberSettings(weight=1)}, weights={"x": 1}), "no member"),
    ],
)
def test_ensembles_that_cannot_be(tutor, model, overrides, words):
    """What has no members, or weights that the rule cannot use, is refused with the reason."""
    with pytest.raises(InvalidRequestError, match=words):
        tutor.resolve(model, overrides)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x": {"model": "math2", "weight": 1}}, "neither base, nor a source of the preset"),
        ({"x": {"model": "tutor", "weight": 1}}, "PRESET@N"),
        ({"x": {"model": "nobody@1", "weight": 1}}, "there is no 'nobody@1'"),
        ({"x": {"model": "tutor@2", "weight": 1}}, "x.model: .*no revision 2: its newest is 1"),
        ({"x": {"model": "tutor@1:ensemble", "weight": 1}}, "'tutor@1:ensemble' is an ensemble"),
        ({"x": {"model": "a/b", "weight": 1}}, "'a/b' does not exist"),
        ({"x": {"model": "base", "wait": 1}}, "known are model, weight, system, prompt"),
        ({"a b": {"model": "base"}}, "pattern"),
    ],
)
def test_members_of_a_document(tutor, members, words):
    """A document names only what stays the same while its revision does."""
    with pytest.raises(InvalidRequestError, match=words):
        tutor.create(preset("other", mode="ensemble", ensemble={"members": members}), edit=Edit())


def test_a_revision_of_a_preset_as_a_member_of_a_document(tutor):
    """An edit of the other preset does not reach it."""
    members = {"tutor": {"model": "tutor@1", "weight": 0.5}}
    tutor.create(preset("other", mode="ensemble", ensemble={"members": members}), edit=Edit())
    before = tutor.resolve("other")
    tutor.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    after = tutor.resolve("other")
    assert after.digest == before.digest
    assert rows(after) == {"math": 0.5, "tutor": 0.5}


def test_a_revision_that_is_not_kept_is_no_member(world):
    """That it was there once is not enough: the edit is refused, not its every request."""
    catalog = world.open_with_sources(revisions_kept=1)
    catalog.create(preset(), edit=Edit())
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    members = {"old": {"model": "tutor@1", "weight": 0.5}}
    with pytest.raises(InvalidRequestError, match=r"members\.old\.model: .*it is no longer kept"):
        catalog.create(preset("other", ensemble={"members": members}), edit=Edit())


def test_a_recipe_in_the_request_can_be_an_ensemble(tutor):
    """A recipe needs no preset in either mode, and has one digest."""
    recipe = {"method": "task_arithmetic", "sources": SOURCES, "parameters": {"lambda": 2.0}}
    served = tutor.resolve("base", asked(recipe=recipe))
    assert rows(served) == {"base": -0.5, "code": 1.0, "math": 0.5}
    assert served.digest == tutor.preset("tutor").digest


def test_what_callers_may_do_is_the_operators_choice(world, tutor):
    """`mode` allows the other way and another rule; weights and members are more."""
    tutor.create(preset("lone"), edit=Edit())
    catalog = world.open(policy=Policy("mode", "off", serve_sources=False))
    assert catalog.resolve("tutor", asked(rule="log_pool")).mode == "ensemble"
    member = {"math": MemberSettings(system="x")}
    for overrides, setting in (
        (asked(weights={"math": 1.0}), "--overrides is 'mode'"),
        (asked(members=member), "--overrides is 'mode'"),
    ):
        with pytest.raises(ForbiddenError, match=setting):
            catalog.resolve("tutor", overrides)
    with pytest.raises(ForbiddenError, match="--inline-recipes is 'off'"):
        catalog.resolve("base", asked(members=member))
    closed = world.open(policy=Policy("weights", "off", serve_sources=False))
    with pytest.raises(ForbiddenError, match="--serve-sources is 'no'"):
        closed.resolve("lone", asked(members={"x": MemberSettings(model="code", weight=1)}))


CHECKPOINTS = {"ft": {"weight": 0.5}, "other": {"weight": 0.25}}


def with_checkpoints(variants: VariantWorld, **options) -> Catalog:
    catalog = variants.open_with_sources(**options)
    catalog.add_source("other", variants.checkpoint("other", 9))
    return catalog


def test_checkpoints_are_members_as_they_are(variants):
    """A checkpoint is a variant of its own, built when the preset is edited; the merged weights are
    never built for an ensemble.
    """
    catalog = with_checkpoints(variants)
    record = catalog.create(preset(sources=CHECKPOINTS, mode="ensemble"), edit=Edit())
    assert (record.path, record.state) == ("ensemble", "ready")
    assert variants.forge.num_builds == 2
    served = catalog.resolve("tutor")
    assert rows(served) == {"base": 0.25, "ft": 0.5, "other": 0.25}
    alone = {name: catalog.resolve(name).members[0].weights for name in CHECKPOINTS}
    assert {m.name: m.weights for m in served.members if m.name != "base"} == alone
    assert variants.forge.num_builds == 2


def test_adapters_and_checkpoints_mix(variants):
    """Members of both kinds are rows of one group."""
    catalog = variants.open_with_sources()
    sources = {"ft": {"weight": 0.5}, "math": {"weight": 0.5}}
    catalog.create(preset(sources=sources), edit=Edit())
    served = catalog.resolve("tutor:ensemble")
    assert [type(member.weights).__name__ for member in served.members] == ["FakeVariant", "Blend"]


def test_a_cold_ensemble_is_cold_and_comes_back(variants):
    """After a restart the members' weights are not there: the state says so, a pinned preset has
    them before the server is ready, and a request waits for them.
    """
    catalog = with_checkpoints(variants)
    catalog.create(preset(sources=CHECKPOINTS, mode="ensemble"), edit=Edit())
    catalog.create(preset("kept", sources=CHECKPOINTS, mode="ensemble", pinned=True), edit=Edit())
    again = variants.open()
    assert {record.name: record.state for record in again.presets()} == {
        "kept": "cold",
        "tutor": "cold",
    }
    again.build_pinned()
    assert again.preset("kept").state == "ready"
    assert len(again.resolve("tutor").members) == 3


TOGETHER = r"its 2 members run together: its weights need .* MiB.* in all \(--variant-memory\)"


def test_an_ensemble_that_does_not_fit_the_memory(variants):
    """Members' weights that cannot be there together are refused before any is built."""
    catalog = with_checkpoints(variants, budget=int(1.5 * WHOLE))
    with pytest.raises(UnprocessableError, match=TOGETHER):
        catalog.resolve("base", asked(rule="log_pool", members=BOTH_CHECKPOINTS))
    assert variants.forge.num_builds == 0


def test_an_ensemble_beside_pinned_weights(variants):
    """What pinned presets hold, and will go on holding, is no room for members; what the edit
    itself replaces is.
    """
    catalog = with_checkpoints(variants, budget=int(3.5 * WHOLE))
    others = {"third": {"weight": 0.5}, "fourth": {"weight": 0.5}}
    for seed, name in enumerate(others, start=10):
        catalog.add_source(name, variants.checkpoint(name, seed))
    pinned = preset("pinned", sources=CHECKPOINTS, mode="ensemble", pinned=True)
    catalog.create(pinned, edit=Edit())
    builds = variants.forge.num_builds
    for attempt in (catalog.validate, catalog.create):
        with pytest.raises(UnprocessableError, match=r"run together: .* beside the .* of pinned"):
            attempt(preset(sources=others, mode="ensemble"), edit=Edit())
    with pytest.raises(UnprocessableError, match=TOGETHER):
        catalog.resolve("base", asked(rule="log_pool", members=both(*others)))
    assert variants.forge.num_builds == builds
    changed = preset("pinned", sources=others, mode="ensemble", pinned=True)
    assert catalog.replace("pinned", changed, edit=Edit()).record.state == "ready"


def test_members_that_another_preset_pins_are_no_room(variants):
    """An edit that leaves them is no reason for them to go, whoever else runs them."""
    catalog = with_checkpoints(variants, budget=int(3.5 * WHOLE))
    others = {"third": {"weight": 0.5}, "fourth": {"weight": 0.5}}
    for seed, name in enumerate(others, start=10):
        catalog.add_source(name, variants.checkpoint(name, seed))
    catalog.create(preset("pinned", sources=CHECKPOINTS, mode="ensemble", pinned=True), edit=Edit())
    catalog.create(preset(sources=CHECKPOINTS, mode="ensemble"), edit=Edit())
    with pytest.raises(UnprocessableError, match=r"run together: .* beside the .* of pinned"):
        catalog.replace("tutor", preset(sources=others, mode="ensemble"), edit=Edit())
    assert catalog.preset("tutor").revision == 1


def test_pinned_members_make_room_for_those_that_replace_them(variants):
    """An edit of a pinned ensemble needs room for its new members, not beside the old ones."""
    catalog = with_checkpoints(variants, budget=int(2.5 * WHOLE))
    others = {"third": {"weight": 0.5}, "fourth": {"weight": 0.5}}
    for seed, name in enumerate(others, start=10):
        catalog.add_source(name, variants.checkpoint(name, seed))
    pinned = preset(sources=CHECKPOINTS, mode="ensemble", pinned=True)
    catalog.create(pinned, edit=Edit())
    changed = preset(sources=others, mode="ensemble", pinned=True)
    assert catalog.replace("tutor", changed, edit=Edit()).record.state == "ready"


def both(*names: str) -> dict[str, MemberSettings]:
    return {name: MemberSettings(weight=0.5) for name in names}


BOTH_CHECKPOINTS = both(*CHECKPOINTS)


HEAVY = {"heavy": {"model": "heavy@1", "weight": 0.5}}


@pytest.mark.parametrize("mode", ["merge", "ensemble"])
def test_a_revision_that_cannot_be_called_is_no_member(variants, monkeypatch, mode):
    """One that is building, or has failed, is refused with why, and with the field."""
    catalog = variants.open_with_sources()
    monkeypatch.setattr(Builder, "submit", lambda *arguments: None)
    catalog.create(preset("heavy", **TIES), edit=Edit(wait=False))
    document = preset(mode=mode, ensemble={"members": HEAVY})
    with pytest.raises(UnavailableError, match="heavy@1 is still building"):
        catalog.create(document, edit=Edit())
    catalog._builder._fail(catalog._snapshot.presets["heavy"].head, ["it holds NaN"])
    for attempt in (catalog.validate, catalog.create):
        with pytest.raises(UnprocessableError) as caught:
            attempt(document, edit=Edit())
        field, _, why = caught.value.message.partition(": ")
        assert (field, why) == (caught.value.param, "heavy@1 cannot be called: it holds NaN")
    assert field == "ensemble.members.heavy.model"


def test_the_weights_of_a_member_revision_are_built_by_the_edit(variants):
    """An ensemble serves when its edit is answered, so its members' weights are there; together
    they must fit the memory.
    """
    document = preset(sources={"ft": {"weight": 0.5}}, mode="ensemble", ensemble={"members": HEAVY})
    small = variants.open_with_sources(budget=int(1.5 * WHOLE))
    small.create(preset("heavy", **TIES), edit=Edit())
    with pytest.raises(UnprocessableError, match="its 2 members"):
        small.create(document, edit=Edit())
    variants.variants._shelf.budget = 1 << 20
    variants.variants._shelf._let_go(small.preset("heavy").digest)
    before = variants.forge.num_builds
    small.create(document, edit=Edit())
    assert variants.forge.num_builds == before + 2
    assert {member.name for member in small.resolve("tutor").members} == {"ft", "heavy"}
    assert variants.forge.num_builds == before + 2


def of_heavy(catalog: Catalog, edit: Edit | None = None, **fields) -> str:
    """Create heavy, and tutor, an ensemble of ft and heavy@1; returns the digest of heavy@1."""
    catalog.create(preset("heavy", **TIES), edit=Edit())
    sources = {"ft": {"weight": 0.5}}
    document = preset(sources=sources, mode="ensemble", ensemble={"members": HEAVY}, **fields)
    digest = catalog.preset("heavy").digest
    if edit is not None:
        catalog._variants._shelf._let_go(digest)
    catalog.create(document, edit=edit or Edit())
    return digest


def test_a_member_revision_is_kept_while_its_ensemble_serves(variants):
    """An edit of its own preset, or that preset's end, does not take its weights away."""
    catalog = variants.open_with_sources()
    digest = of_heavy(catalog)
    catalog.patch("heavy", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    assert digest in variants.variants._shelf
    catalog.delete("heavy", edit=Edit())
    builds = variants.forge.num_builds
    assert {member.name for member in catalog.resolve("tutor").members} == {"ft", "heavy"}
    assert variants.forge.num_builds == builds
    catalog.patch("tutor", {"ensemble": {"members": None}}, edit=Edit())
    assert digest not in variants.variants._shelf


def test_a_member_revision_is_built_for_an_edit_that_does_not_wait(variants):
    """The builder builds all that the ensemble runs, before it serves."""
    catalog = variants.open_with_sources()
    digest = of_heavy(catalog, Edit(wait=False))
    catalog._builder.close()
    assert catalog.preset("tutor").state == "ready"
    assert digest in variants.variants._shelf


def test_a_member_revision_of_a_pinned_ensemble_is_pinned(variants):
    """It leaves less room for others, and is there before the server is ready; until then the
    preset is cold.
    """
    catalog = variants.open_with_sources(budget=int(2.5 * WHOLE))
    digest = of_heavy(catalog, pinned=True)
    assert digest in variants.variants._shelf._pinned
    with pytest.raises(UnprocessableError, match="pinned presets"):
        catalog.create(preset("other", parameters={"lambda": 2.0}, **TIES), edit=Edit())
    again = variants.open(budget=int(2.5 * WHOLE))
    again.resolve("ft")
    assert again.preset("tutor").state == "cold"
    again.build_pinned()
    assert digest in variants.variants._shelf
    assert again.preset("tutor").state == "ready"


def test_a_member_revision_stays_when_a_source_changes(variants):
    """The ensemble's next revision runs the same revision, also where it is no longer kept."""
    catalog = variants.open_with_sources(revisions_kept=1)
    digest = of_heavy(catalog)
    catalog.patch("heavy", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    catalog.replace_source("ft", str(variants.checkpoint("newer", 12)), edit=Edit())
    served = catalog.resolve("tutor")
    assert served.revision == 2
    assert digest in {member.weights.digest for member in served.members}


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_merge_is_edited_without_members_that_are_gone(variants, is_restarted):
    """A member that it has already, and does not run, stands in the way of no other edit; to run
    it, or to name one anew, is another thing.
    """
    catalog = variants.open_with_sources(revisions_kept=1)
    catalog.create(preset("heavy", **TIES), edit=Edit())
    catalog.create(preset(ensemble={"members": HEAVY}), edit=Edit())
    catalog.patch("heavy", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    if is_restarted:
        catalog = variants.open(revisions_kept=1)
    assert catalog.patch("tutor", {"description": "x"}, edit=Edit()).record.revision == 2
    patch = {"sources": {"math": {"weight": 0.6}}}
    assert catalog.patch("tutor", patch, edit=Edit()).record.revision == 3
    catalog.replace_source("math", str(variants.adapter("newer", 12)), edit=Edit())
    assert catalog.preset("tutor").revision == 4
    again = {"again": {"model": "heavy@1:merge", "weight": 0.5}}
    with pytest.raises(InvalidRequestError, match="no revision 1"):
        catalog.patch("tutor", {"ensemble": {"members": again}}, edit=Edit())
    if is_restarted:
        with pytest.raises(InvalidRequestError, match="no revision 1"):
            catalog.patch("tutor", {"mode": "ensemble"}, edit=Edit())
    else:  # its plan is still there
        catalog.patch("tutor", {"mode": "ensemble"}, edit=Edit())
        assert "heavy" in rows(catalog.resolve("tutor"))


def test_a_source_that_is_one_no_more_is_no_member(tutor):
    """A merge does without members that are gone, not with names that stand for nothing fixed."""
    members = {"x": {"model": "math", "weight": 0.5}}
    tutor.patch("tutor", {"ensemble": {"members": members}}, edit=Edit())
    with pytest.raises(InvalidRequestError, match="neither base, nor a source of the preset"):
        tutor.patch("tutor", {"sources": {"math": None}}, edit=Edit())


def test_a_member_that_goes_before_the_commit_is_no_member(variants, monkeypatch):
    """What was planned is planned anew if the preset of a member was edited or deleted since."""
    catalog = variants.open_with_sources()
    catalog.create(preset("heavy", **TIES), edit=Edit())
    check, checked = variants.variants.check, []

    def deleting(*arguments):
        checked.append(arguments)
        if len(checked) == 1:
            catalog.delete("heavy", edit=Edit())
        check(*arguments)

    monkeypatch.setattr(variants.variants, "check", deleting)
    with pytest.raises(InvalidRequestError, match="there is no 'heavy@1'"):
        catalog.create(preset(ensemble={"members": HEAVY}), edit=Edit())
    assert [record.name for record in catalog.presets()] == []


def test_an_ensemble_whose_member_is_gone_has_failed(variants):
    """After a restart, when the revision cannot be looked up, the state and the reason say so; a
    preset that runs as a merge serves that.
    """
    catalog = variants.open_with_sources(revisions_kept=1)
    of_heavy(catalog)
    catalog.create(preset("merged", ensemble={"members": HEAVY}), edit=Edit())
    catalog.patch("heavy", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    again = variants.open(revisions_kept=1)
    tutor = again.preset("tutor")
    assert tutor.state == "failed"
    assert "ensemble.members.heavy.model: preset 'heavy' has no revision 1" in tutor.reasons[0]
    assert again.resolve("merged").mode == "merge"
    with pytest.raises(InvalidRequestError, match="no revision 1"):
        again.resolve("merged:ensemble")


def test_new_content_of_a_member_makes_a_new_revision(variants):
    """An ensemble follows its sources as a merge does; who called before keeps the old weights."""
    catalog = with_checkpoints(variants)
    catalog.create(preset(sources=CHECKPOINTS, mode="ensemble"), edit=Edit())
    before = catalog.resolve("tutor")
    catalog.replace_source("ft", str(variants.checkpoint("newer", 12)), edit=Edit())
    after = catalog.resolve("tutor")
    assert (before.revision, after.revision) == (1, 2)
    old = [member.weights.digest for member in catalog.resolve("tutor@1").members]
    assert old == [member.weights.digest for member in before.members]
    assert after.digest != before.digest


def test_a_preset_whose_members_never_fit_together_is_refused(variants, monkeypatch):
    """An edit and its dry run refuse an ensemble that could never be called, and build nothing of
    it; one that was committed while it was not waited for fails in the same way.
    """
    catalog = with_checkpoints(variants, budget=int(1.5 * WHOLE))
    document = preset(sources=CHECKPOINTS, mode="ensemble")
    with pytest.raises(UnprocessableError, match=TOGETHER):
        catalog.validate(document, edit=Edit())
    for wait in (True, False):
        with pytest.raises(UnprocessableError, match=TOGETHER):
            catalog.create(document, edit=Edit(wait=wait))
    assert variants.forge.num_builds == 0
    roomy = with_checkpoints(variants)
    monkeypatch.setattr(Builder, "submit", lambda *arguments: None)
    roomy.create(document, edit=Edit(wait=False))
    monkeypatch.undo()
    variants.variants._shelf.budget = int(1.5 * WHOLE)
    with pytest.raises(UnprocessableError, match=TOGETHER):
        roomy.replace("tutor", document, edit=Edit())  # who waits for what is building
    head, sources = roomy._snapshot.presets["tutor"].head, roomy._snapshot.sources
    roomy._builder.finish(Serving(head, roomy._planner.plan_document(document, sources)))
    assert roomy.preset("tutor").state == "failed"
    assert "2 members run together" in roomy.preset("tutor").reasons[0]
    assert variants.forge.num_builds == 0


def test_a_refused_ensemble_leaves_no_build_behind(variants, monkeypatch):
    """When the second member's build is refused, the first one's is not wanted any more."""
    catalog = with_checkpoints(variants)
    catalog.add_source("third", variants.checkpoint("third", 10))
    monkeypatch.setattr(jobs, "MAX_QUEUED", 1)
    variants.forge.gate.clear()
    running = catalog.begin("third")
    variants.forge.wait_for_start()
    with pytest.raises(UnavailableError, match="other builds wait"):
        catalog.begin("base", asked(rule="log_pool", members=BOTH_CHECKPOINTS))
    variants.forge.gate.set()
    running.result(20)
    variants.variants._executor.submit(lambda: None).result(20)  # after all that was queued
    assert variants.forge.num_builds == 1


def test_a_member_is_no_way_around_the_mode_of_a_preset(variants):
    """A request that names the merge of an ensemble preset as a member needs what calling that
    merge needs, and what building weights for one request needs. A document may name it.
    """
    catalog = variants.open_with_sources()
    catalog.create(preset("shut", mode="ensemble", overrides="none"), edit=Edit())
    catalog.create(preset("blend", mode="ensemble", overrides="mode"), edit=Edit())
    catalog.create(
        preset("heavy", sources={"ft": {"weight": 0.5}}, mode="ensemble", overrides="mode"),
        edit=Edit(),
    )

    def ask(model: str) -> Served:
        members = {"x": MemberSettings(model=f"{model}:merge", weight=1.0)}
        return catalog.resolve("base", asked(rule="log_pool", members=members))

    with pytest.raises(ForbiddenError, match="'shut' cannot be asked for another mode"):
        ask("shut")
    with pytest.raises(ForbiddenError, match="--inline-recipes"):
        ask("heavy")
    assert [member.name for member in ask("blend").members] == ["x"]
    member = {"x": {"model": "shut@1:merge", "weight": 0.5}}
    catalog.create(preset("own", mode="ensemble", ensemble={"members": member}), edit=Edit())
    assert "x" in rows(catalog.resolve("own"))
