"""Adapters whose delta is dense, served: called, blended, in ensembles, and after a restart."""

import json
from collections.abc import Callable

import pytest
import torch

from server.adapters import process
from server.adapters.request import MergeRequest
from tests.models import save_tiny_model
from tests.server.adapters.asking import (
    ask,
    dense,
    low_rank,
    near,
    of_tensors,
    refused,
    register,
)
from tests.server.adapters.peft_folders import (
    KINDS,
    save_kind,
    unmerged_log_probabilities,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, in this process


@pytest.mark.parametrize("family", sorted({family for family, _ in KINDS.values()}))
def test_every_type_alone_is_what_peft_computes(tmp_path, here, serve, family):
    """A source at weight 1 has the log-probabilities of PEFT's own unmerged forward, to 1e-4."""
    base = save_tiny_model(tmp_path / "base", family)
    kinds = {kind: make for kind, (own, make) in KINDS.items() if own == family}
    with serve(base) as api:
        for kind, make in kinds.items():
            folder = save_kind(tmp_path / kind, base, make)
            card = register(api, kind, kind)
            assert (card["kind"], card["delta"]["form"]) == ("adapter", "dense"), card
            assert card["delta"]["reasons"]
            assert card["num_bytes"] > 0
            near(ask(api, kind), unmerged_log_probabilities(base, folder))
    assert len(here) == len(kinds)


PRESET = {
    "name": "mix",
    "method": "task_arithmetic",
    "sources": {"math": {"weight": 0.7}, "dora": {"weight": 0.4}, "ia3": {"weight": -0.3}},
}


def test_a_blend_with_plain_adapters_is_the_dense_sum(tmp_path, here, serve, tiny):
    """Dense deltas add up with low-rank ones, each with its weight; explain says which is which."""
    with serve(tiny) as api:
        for name in ("math", "dora", "ia3"):
            register(api, name, name)
        made = api.request("POST", "/v1/presets", json=PRESET)
        assert made.status_code == 201, made.text
        found = ask(api, "mix")
        explained = api.request("GET", "/v1/presets/mix/explain").json()

    def change(tensors: dict[str, torch.Tensor]) -> None:
        low_rank(tmp_path / "math", 0.7)(tensors)
        dense(tiny, tmp_path / "dora", 0.4)(tensors)
        dense(tiny, tmp_path / "ia3", -0.3)(tensors)

    near(found, of_tensors(tiny, change))
    assert explained["path"] == "variant"
    assert "dora, ia3 have dense deltas" in explained["reason"]
    deltas = {own["name"]: (own["delta"], own["reasons"]) for own in explained["sources"]}
    assert deltas["math"] == ("low_rank", [])
    assert deltas["dora"] == ("dense", ["use_dora: DoRA rescales the base's weights row by row"])


def test_an_ensemble_is_the_rule(tmp_path, here, serve, tiny):
    """A linear pool of a dense and a plain adapter is the mean of their probabilities."""
    preset = {
        **PRESET,
        "mode": "ensemble",
        "sources": {"math": {"weight": 0.25}, "dora": {"weight": 0.75}},
        "ensemble": {"rule": "linear_pool"},
    }
    with serve(tiny) as api:
        for name in ("math", "dora"):
            register(api, name, name)
        made = api.request("POST", "/v1/presets", json=preset)
        assert made.status_code == 201, made.text
        pooled = 0.25 * ask(api, "math").exp() + 0.75 * ask(api, "dora").exp()
        near(ask(api, "mix"), pooled.log())


def test_a_restart_reads_what_was_merged(tmp_path, here, serve, tiny):
    """What is in the cache is not merged again; what was damaged there, is."""
    with serve(tiny) as api:
        register(api, "dora", "dora")
        before = ask(api, "dora")
    with serve(tiny) as api:
        near(ask(api, "dora"), before)
    assert len(here) == 1
    (file,) = (tmp_path / "dense").rglob("model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with serve(tiny) as api:
        near(ask(api, "dora"), before)
    assert len(here) == 2


def test_what_is_in_use_is_kept_and_the_rest_makes_room(tmp_path, here, serve, tiny):
    """Beyond the budget what was used longest ago goes; if all is in use, the next is refused."""
    for seed in (2, 3, 4):
        save_kind(tmp_path / f"dora{seed}", tiny, KINDS["dora"][1], seed)
    budget = 2.5 * 3 * (32 * 32 + 32 * 16 + 32 * 48) * 4 / 2**30
    with serve(tiny, dense_cache=budget) as api:
        register(api, "two", "dora2")
        register(api, "three", "dora3")
        body = {"name": "four", "path": "dora4"}
        refused = api.request("POST", "/v1/sources", json=body)
        assert refused.status_code == 422
        assert "--dense-cache" in refused.json()["error"]["message"]
        assert api.request("DELETE", "/v1/sources/two").status_code == 204
        register(api, "four", "dora4")
        near(ask(api, "four"), unmerged_log_probabilities(tiny, tmp_path / "dora4"))
        near(ask(api, "three"), unmerged_log_probabilities(tiny, tmp_path / "dora3"))
    assert len(list((tmp_path / "dense").rglob("model.safetensors"))) == 2


def test_broken_folders_are_refused(tmp_path, here, serve, tiny):
    """Tensors that are missing, of another shape or not finite, and fields that are not known, are
    told, and nothing is registered.
    """
    from safetensors.torch import load_file, save_file

    def broken(name: str, change: Callable[[dict], None], **fields: object) -> str:
        folder = save_kind(tmp_path / name, tiny, KINDS["dora"][1])
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
        return name

    def first(tensors: dict) -> str:
        return sorted(tensors)[0]

    def cut(tensors: dict) -> None:
        tensors[first(tensors)] = tensors[first(tensors)][:, :3].clone()

    def drop(tensors: dict) -> None:
        del tensors[first(tensors)]

    def spoil(tensors: dict) -> None:
        tensors[first(tensors)][0, 0] = torch.nan

    with serve(tiny) as api:
        assert "missing adapter keys" in refused(api, broken("missing", drop))
        assert "size mismatch" in refused(api, broken("shape", cut))
        assert "computes something else" in refused(api, broken("nan", spoil))
        assert "invented is not known" in refused(api, broken("odd", lambda t: None, invented=1))
        endless = broken("endless", lambda t: None, target_modules="((a+)+)*")
        assert "may take for ever" in refused(api, endless)
        assert [own["name"] for own in api.request("GET", "/v1/sources").json()["data"]] == []


def test_what_has_no_static_weights_is_refused_by_name(tmp_path, here, serve, tiny):
    """Prompt tuning, aLoRA and inits that draw numbers are refused with a way out, unmerged."""
    import peft

    makes = {
        "PROMPT_TUNING": lambda: peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4
        ),
        "alora_invocation_tokens": lambda: peft.LoraConfig(
            target_modules=["q_proj"], alora_invocation_tokens=[1]
        ),
        "pissa_niter_4": lambda: peft.LoraConfig(
            target_modules=["q_proj"], init_lora_weights="pissa_niter_4"
        ),
    }
    with serve(tiny) as api:
        for name, make in makes.items():
            save_kind(tmp_path / name, tiny, make)
            said = refused(api, name)
            assert name in said
            assert "; " in said
    assert here == []


def test_a_merge_runs_in_a_process_of_its_own(tmp_path, tiny):
    """The process writes what is asked, and its refusals come back as reasons."""
    request = MergeRequest(str(tiny), str(tmp_path / "dora"), None, str(tmp_path / "out"), 10**9)
    answer = process.merge_apart(request)
    assert answer.num_tensors == 9
    assert answer.difference < 1e-5
    with pytest.raises(process.SourceError, match="--dense-cache"):
        process.merge_apart(
            MergeRequest(str(tiny), str(tmp_path / "dora"), None, str(tmp_path / "out2"), 10)
        )


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    """What becomes of the process is a reason, and not an error of the server."""
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    request = MergeRequest("a", "b", None, "c", 1)
    with pytest.raises(process.SourceError, match="exit code 1"):
        process.merge_apart(request)
