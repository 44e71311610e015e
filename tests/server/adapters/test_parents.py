"""Adapters that were trained on the base with another source on it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import save_adapter
from tests.models import tiny_model
from tests.server.adapters.asking import ask, low_rank, near, of_tensors, refused, register
from tests.server.adapters.peft_folders import (
    KINDS,
    load,
    save_kind,
    unmerged_log_probabilities,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, in this process


@pytest.fixture
def child(tmp_path: Path, tiny: Path) -> Path:
    """A plain adapter, of other modules than math in part."""
    model = tiny_model("llama-untied")
    targets = ["q_proj", "up_proj"]
    return save_adapter(tmp_path / "child", model, seed=9, std=0.1, target_modules=targets, r=3)


def merged(base: Path, adapter: Path, out: Path) -> Path:
    """The base with a plain adapter merged into it, as a checkpoint."""
    model = load(base)
    with torch.no_grad():
        low_rank(adapter, 1.0)(dict(model.named_parameters()))
    model.save_pretrained(out)
    return out


def test_a_plain_adapter_on_a_plain_one_is_the_sum_of_both(tmp_path, here, serve, tiny, child):
    """It stays low-rank, and nothing is merged; in a preset its delta includes the parent's."""
    with serve(tiny) as api:
        register(api, "math", "math")
        card = register(api, "child", "child", parent="math")
        assert (card["parent"], card["delta"]["form"]) == ("math", "low_rank")
        alone = ask(api, "child")
        made = api.request(
            "POST", "/v1/presets", json={"name": "half", "sources": {"child": {"weight": 0.5}}}
        )
        assert made.json()["path"] == "blend"
        half = ask(api, "half")

    def change(weight):
        def both(tensors):
            low_rank(tmp_path / "math", weight)(tensors)
            low_rank(tmp_path / "child", weight)(tensors)

        return both

    near(alone, of_tensors(tiny, change(1.0)))
    near(half, of_tensors(tiny, change(0.5)))
    assert here == []


def test_a_dense_adapter_on_a_plain_one_is_peft_on_the_merged_base(tmp_path, here, serve, tiny):
    """DoRA rescales the parent's weights too: PEFT merges it onto them."""
    folder = merged(tiny, tmp_path / "math", tmp_path / "merged")
    save_kind(tmp_path / "dora", folder, KINDS["dora"][1])
    with serve(tiny) as api:
        register(api, "math", "math")
        register(api, "dora", "dora", parent="math")
        near(ask(api, "dora"), unmerged_log_probabilities(folder, tmp_path / "dora"))


def test_an_adapter_on_a_dense_one_is_dense(tmp_path, here, serve, tiny, child):
    """A plain adapter on a source that is no low-rank delta is merged onto it, also two deep."""
    with serve(tiny) as api:
        register(api, "dora", "dora")
        card = register(api, "child", "child", parent="dora")
        assert card["delta"]["reasons"] == ["its parent is no low-rank delta"]
        register(api, "again", "child", parent="child")
        found, twice = ask(api, "child"), ask(api, "again")

    def change(times):
        def all_of_them(tensors):
            from tests.server.adapters.asking import dense

            dense(tiny, tmp_path / "dora", 1.0)(tensors)
            low_rank(tmp_path / "child", times)(tensors)

        return all_of_them

    near(found, of_tensors(tiny, change(1.0)))
    near(twice, of_tensors(tiny, change(2.0)))


def test_an_adapter_on_a_checkpoint(tmp_path, here, serve, tiny, child):
    """A full checkpoint may be a parent."""
    merged(tiny, tmp_path / "math", tmp_path / "tuned")
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with serve(tiny) as api:
        register(api, "tuned", "tuned")
        register(api, "child", "child", parent="tuned")
        near(ask(api, "child"), unmerged_log_probabilities(tmp_path / "tuned", child))


def test_new_content_of_a_parent_is_followed(tmp_path, here, serve, tiny, child):
    """Children and the presets that use them follow, with a revision of their own; the old one
    keeps the old parent, also after a restart.
    """
    save_adapter(tmp_path / "math2", tiny_model("llama-untied"), seed=77, std=0.1)
    with serve(tiny) as api:
        register(api, "math", "math")
        register(api, "child", "child", parent="math")
        api.request(
            "POST", "/v1/presets", json={"name": "p", "sources": {"child": {"weight": 1.0}}}
        )
        before = ask(api, "p")
        put = api.request("PUT", "/v1/sources/math", json={"path": "math2"})
        assert put.status_code == 200, put.text
        assert put.json()["new_revisions"] == [{"name": "p", "revision": 2}]
        after = ask(api, "p")
        near(after, ask(api, "child"))
        near(ask(api, "p@1"), before)
        assert float((after - before).abs().max()) > 1e-2
    with serve(tiny) as api:
        near(ask(api, "p"), after)
        near(ask(api, "p@1"), before)
        assert api.request("GET", "/v1/sources/child").json()["parent"] == "math"


def test_a_parent_is_kept_unless_it_is_given(tmp_path, here, serve, tiny, child):
    """PUT without the field keeps the parent, and null takes it away."""
    with serve(tiny) as api:
        register(api, "math", "math")
        register(api, "child", "child", parent="math")
        url = "/v1/sources/child"
        assert api.request("PUT", url, json={"path": "child"}).json()["parent"] == "math"
        bare = api.request("PUT", url, json={"path": "child", "parent": None})
        assert bare.json()["parent"] is None
        near(ask(api, "child"), of_tensors(tiny, low_rank(child, 1.0)))


def test_parents_that_cannot_be(tmp_path, here, serve, tiny, child):
    """Missing ones, circles, those of checkpoints, and deletion of a parent are refused by name."""
    merged(tiny, tmp_path / "math", tmp_path / "tuned")
    with serve(tiny) as api:
        assert "there is no source 'math'" in refused(api, "child", parent="math")
        register(api, "math", "math")
        assert "is no adapter" in refused(api, "tuned", parent="math")
        register(api, "child", "child", parent="math")
        gone = api.request("DELETE", "/v1/sources/math")
        assert gone.status_code == 409
        assert "parent of child" in gone.json()["error"]["message"]
        circle = api.request("PUT", "/v1/sources/math", json={"path": "math", "parent": "child"})
        assert circle.status_code == 400
        own = api.request("PUT", "/v1/sources/child", json={"path": "child", "parent": "child"})
        assert own.status_code == 400


def test_parents_on_the_command_line(tmp_path, here, serve, tiny, child):
    """--source NAME=DIR,parent=NAME, in any order, and after a restart."""
    source = [f"child={tmp_path / 'child'},parent=math", f"math={tmp_path / 'math'}"]
    for _ in range(2):
        with serve(tiny, source=source) as api:
            card = api.request("GET", "/v1/sources/child").json()
            assert (card["parent"], card["state"]) == ("math", "ready")
