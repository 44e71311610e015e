"""Edits of a preset with weights of its own, on a real engine that is under load."""

import gc
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from server.app import create_app
from server.engine.variant import Variant
from server.settings import Settings
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.server.api.scripted import Harness, running
from tests.tokenizers import byte_tokenizer

NUM_EDITS = 200
PATH = "/v1/presets/tutor"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, an adapter, and two checkpoints of the same shapes."""
    root = tmp_path_factory.mktemp("files")
    save_tiny_model(root / "tiny")
    save_adapter(root / "math", tiny_model(), seed=0, std=0.3)
    for seed in (1, 2):
        tiny_model(seed=seed).save_pretrained(root / f"ft{seed}")
    return root


@pytest.fixture
def api(files: Path, tmp_path: Path) -> Iterator[Harness]:
    """A server with the base, the adapter and the first checkpoint."""
    settings = Settings(
        model=str(files / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"math={files / 'math'}", f"ft={files / 'ft1'}"],
        source_dir=[str(files)],
        database_url=f"sqlite:///{tmp_path / 'presets.db'}",
        max_rows=8,
        kv_memory=0.01,
        variant_memory=0.01,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        yield harness


def ask(api: Harness, model: str = "tutor") -> tuple[str, dict]:
    """The greedy continuation of a prompt, and what made it."""
    response = api.complete(model=model, prompt="the cat sat", max_tokens=8, temperature=0)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"][0]["text"], body["mergeserve"]


def patch(api: Harness, weight: float) -> dict:
    response = api.request("PATCH", PATH, json={"sources": {"ft": {"weight": weight}}})
    assert response.status_code == 200, response.text
    document: dict = response.json()
    return document


def create(api: Harness, **fields: object) -> dict:
    sources = {"ft": {"weight": 0.5, "density": 0.5}, "math": {"weight": 0.3, "density": 1.0}}
    document = {"name": "tutor", "method": "ties", "sources": sources, **fields}
    response = api.post("/v1/presets", document)
    assert response.status_code == 201, response.text
    created: dict = response.json()
    return created


def num_variants() -> int:
    gc.collect()
    return sum(type(each) is Variant for each in gc.get_objects())


def metric(api: Harness, name: str) -> float:
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_each_request_is_of_one_revision(api: Harness) -> None:
    """200 edits under load: no request fails, none mixes two revisions, and all weights but those
    that serve leave the memory.
    """
    create(api)
    weights = {0: -0.9, 1: 0.5}  # of even and of odd revisions
    expected = {1: ask(api)[0]}
    patch(api, weights[0])
    expected[0] = ask(api)[0]
    assert expected[0] != expected[1]
    before = num_variants(), metric(api, "mergeserve_variant_bytes")
    stop, answers = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            answers.append(ask(api))

    with ThreadPoolExecutor(3) as threads:
        loads = [threads.submit(load) for _ in range(3)]
        try:
            start = api.get(PATH).json()["revision"]
            for index in range(NUM_EDITS):
                number = start + 1 + index
                document = patch(api, weights[number % 2])
                assert (document["revision"], document["state"]) == (number, "ready")
        finally:
            stop.set()
        for each in loads:
            each.result()
    assert len({made["revision"] for _, made in answers}) > 5
    for text, made in answers:
        assert made["path"] == "variant"
        assert text == expected[made["revision"] % 2]
    assert (num_variants(), metric(api, "mergeserve_variant_bytes")) == before
    assert metric(api, 'mergeserve_variant_builds_total{method="ties",outcome="built"}') >= 200


def test_an_edit_serves_when_it_is_answered(api: Harness) -> None:
    """Whoever edits and then asks gets the new weights; those of weight 0 are the base's."""
    create(api, method="task_arithmetic", sources={"ft": {"weight": 1.0}})
    assert ask(api)[0] == ask(api, "ft")[0] != ask(api, "base")[0]
    patch(api, 0.0)
    assert ask(api)[0] == ask(api, "base")[0]
    assert ask(api, "tutor@1")[0] == ask(api, "ft")[0]


def test_an_adapter_that_is_made_is_edited_like_any_blend(api: Harness) -> None:
    """core_space serves as a blend, old revisions and weights of a request too; its adapter is the
    source alone at weight 1, and the base at weight 0.
    """
    document = create(api, method="core_space", sources={"math": {"weight": 1.0}})
    assert document["path"] == "blend"
    whole, base = ask(api, "math")[0], ask(api, "base")[0]
    assert ask(api)[0] == whole != base
    response = api.request("PATCH", PATH, json={"sources": {"math": {"weight": 0.0}}})
    assert response.status_code == 200, response.text
    assert ask(api)[0] == base
    assert ask(api, "tutor@1")[0] == whole
    body = api.complete(
        model="tutor",
        prompt="the cat sat",
        max_tokens=8,
        temperature=0,
        mergeserve={"weights": {"math": 1.0}},
    ).json()
    assert (body["choices"][0]["text"], body["mergeserve"]["path"]) == (whole, "blend")
    assert body["mergeserve"]["digest"] == document["digest"]
    mixed = {"method": "core_space", "sources": {"math": {}, "ft": {}}, "parameters": {"weight": 1}}
    refused = api.post("/v1/presets", {"name": "mixed", **mixed})
    assert refused.status_code == 422
    assert "ft has none" in refused.text


def test_a_source_with_other_tokens(api: Harness, files: Path) -> None:
    """It is refused with the rows that differ, unless it is asked to be aligned; by its name it is
    called with the base's tokens. Its tokens in another order are the same model.
    """
    folder = files / "moved"
    if not folder.exists():
        shutil.copytree(files / "ft1", folder)
        tensors = load_file(folder / "model.safetensors")
        vocabulary = byte_tokenizer().get_vocab()
        order = list(range(len(vocabulary)))
        order[3:] = reversed(order[3:])  # the bytes, and not the special tokens
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][order]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        moved = {token: order[row] for token, row in vocabulary.items()}
        text = {"model": {"vocab": moved}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(text))
    response = api.post("/v1/sources", {"name": "moved", "path": "moved"})
    assert response.status_code == 201, response.text
    assert any("256 rows are of other tokens" in w for w in response.json()["warnings"])
    sources = {"moved": {"weight": 0.5}}
    fields = {"method": "task_arithmetic", "sources": sources, "name": "other"}
    refused = api.post("/v1/presets", fields)
    assert refused.status_code == 422
    assert "sources.moved: its vocabulary is not the base's: 256 rows" in refused.text
    made = create(api, **{**fields, "tokenizer_source": "base"})
    assert made["tokenizer_source"] == "base"
    create(api, name="plain", method="task_arithmetic", sources={"ft": {"weight": 0.5}})
    assert ask(api, "other")[0] == ask(api, "plain")[0] != ask(api, "base")[0]
    assert ask(api, "moved")[0] == ask(api, "ft")[0]
    body = api.get("/v1/presets/other?format=mergekit").json()
    assert body["tokenizer_source"] == "base"
    assert api.request("DELETE", "/v1/presets/other").status_code == 204
    assert api.request("DELETE", "/v1/sources/moved").status_code == 204


def test_a_mergekit_recipe_with_a_dtype(api: Harness) -> None:
    """It is taken as it is pasted: served in the server's dtype, as it is without, which is told;
    and the document, which export reads, keeps it.
    """
    text = """
merge_method: task_arithmetic
base_model: base
models: [{model: ft, parameters: {weight: 0.5}}]
dtype: float16
"""
    headers = {"Content-Type": "application/yaml"}
    response = api.request("PUT", PATH, content=text, headers=headers)
    assert response.status_code == 201, response.text
    plain = create(api, name="plain", method="task_arithmetic", sources={"ft": {"weight": 0.5}})
    document = response.json()
    assert (document["dtype"], document["digest"]) == ("float16", plain["digest"])
    assert ask(api)[0] == ask(api, "plain")[0] != ask(api, "base")[0]
    unrelated, warning = api.get(f"{PATH}/explain").json()["warnings"]
    assert "it is no fine-tune of this base" in unrelated  # its weights are random
    assert "served in float32, as the base is; float16 is what" in warning


def test_files_without_the_models_prefix(tmp_path: Path) -> None:
    """A base and a source as hubs have GPT-2 serve what the same files with all names do."""
    answers = []
    for number, prefix in enumerate(("", "transformer.")):
        root = tmp_path / str(number)
        for seed, name in enumerate(("base", "ft")):
            folder = save_tiny_model(root / name, "gpt2", seed)
            tensors = load_file(folder / "model.safetensors")
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
        settings = Settings(
            model=str(root / "base"),
            dtype="float32",
            device="cpu",
            source=[f"ft={root / 'ft'}"],
            database_url=f"sqlite:///{root / 'presets.db'}",
            kv_memory=0.01,
        )  # type: ignore[arg-type]
        with running(create_app(settings), None) as server:  # type: ignore[arg-type]
            create(server, method="linear", sources={"ft": {"weight": 1.0}, "base": {"weight": 1}})
            answers.append([ask(server, name)[0] for name in ("base", "ft", "tutor")])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


def test_new_content_of_a_source(api: Harness) -> None:
    """A preset follows the content of its source."""
    create(api, method="linear", sources={"ft": {"weight": 1.0}})
    old = ask(api)[0]
    response = api.request("PUT", "/v1/sources/ft", json={"path": "ft2"})
    assert response.status_code == 200, response.text
    assert response.json()["kind"] == "checkpoint"
    assert response.json()["new_revisions"] == [{"name": "tutor", "revision": 2}]
    text, made = ask(api)
    assert (made["revision"], made["path"]) == (2, "variant")
    assert text == ask(api, "ft")[0] != old


def test_a_restart_builds_what_is_pinned(files: Path, tmp_path: Path) -> None:
    """After a restart a pinned preset is ready with the server, another is cold until it is asked;
    both answer as before.
    """
    settings = Settings(
        model=str(files / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"math={files / 'math'}", f"ft={files / 'ft1'}"],
        database_url=f"sqlite:///{tmp_path / 'presets.db'}",
        kv_memory=0.01,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as first:  # type: ignore[arg-type]
        create(first)
        create(first, name="star", method="breadcrumbs", pinned=True)
        answers = {name: ask(first, name) for name in ("tutor", "star")}
    with running(create_app(settings), None) as second:  # type: ignore[arg-type]
        states = {p["name"]: p["state"] for p in second.get("/v1/presets").json()["data"]}
        assert states == {"tutor": "cold", "star": "ready"}
        assert {name: ask(second, name) for name in ("tutor", "star")} == answers
        assert metric(second, "mergeserve_variant_cold_hits_total") == 1
        assert second.get(PATH).json()["state"] == "ready"


def test_layers_are_stacked(api: Harness) -> None:
    """A stack of the base's own layers is a deeper model that costs no weights."""
    slices = [
        {"sources": [{"model": "base", "layer_range": [0, 2]}]},
        {"sources": [{"model": "base", "layer_range": [1, 3]}]},
    ]
    document = create(
        api, method="passthrough", sources={"base": {}}, slices=slices, base_model=None
    )
    assert document["path"] == "variant"
    text, made = ask(api)
    assert made["path"] == "variant"
    assert text != ask(api, "base")[0]
    explained = api.get(f"{PATH}/explain").json()
    assert (explained["num_layers"], explained["num_tensors_written"]) == (4, 0)
    assert metric(api, "mergeserve_variant_bytes") == 0
