"""The whole application over a real, tiny model: from settings to sampled tokens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from server.app import create_app, read_presets
from server.errors import InvalidRequestError
from server.settings import Settings
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.server.api.scripted import Harness, running

PRESETS = [{"name": "tutor", "sources": {"math": {"weight": 0.5}}, "defaults": {"temperature": 0}}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, two adapters and a file of presets."""
    root = tmp_path_factory.mktemp("files")
    save_tiny_model(root / "tiny")
    model = tiny_model()
    for seed, name in enumerate(("math", "code")):
        save_adapter(root / name, model, seed=seed, std=0.3)
    (root / "presets.yaml").write_text(yaml.safe_dump(PRESETS))
    return root


@pytest.fixture(scope="module")
def api(files: Path) -> Iterator[Harness]:
    """The application that these files and settings make."""
    settings = Settings(
        model=str(files / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"math={files / 'math'}"],
        source_dir=[str(files)],
        presets=files / "presets.yaml",
        database_url=f"sqlite:///{files / 'presets.db'}",
        max_rows=8,
        kv_memory=0.01,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        yield harness


def text(api: Harness, **fields: object) -> str:
    """The greedy continuation of a prompt."""
    response = api.complete(prompt="the cat sat", max_tokens=12, temperature=0, **fields)
    assert response.status_code == 200, response.text
    found: str = response.json()["choices"][0]["text"]
    return found


def test_models(api: Harness) -> None:
    """The base, the source and the preset of the settings can be called."""
    ids = [card["id"] for card in api.get("/v1/models").json()["data"]]
    assert ids[0] == "tiny"
    assert {"tutor", "math"} <= set(ids)


def test_edit_changes_the_next_answer(api: Harness) -> None:
    """Weight 0 is the base, weight 1 the adapter alone, and each edit serves at once."""
    url = "/v1/presets/tutor"
    zero = api.request("PATCH", url, json={"sources": {"math": {"weight": 0.0}}})
    assert zero.status_code == 200, zero.text
    assert text(api, model="tutor") == text(api, model="base")
    api.request("PATCH", url, json={"sources": {"math": {"weight": 1.0}}})
    assert text(api, model="tutor") == text(api, model="math") != text(api, model="base")
    old = zero.json()["revision"]
    assert text(api, model=f"tutor@{old}") == text(api, model="base")


def test_register_over_http(api: Harness) -> None:
    """An adapter in a source folder is registered and called."""
    created = api.post("/v1/sources", {"name": "code", "path": "code"})
    assert created.status_code == 201, created.text
    assert text(api, model="code") != text(api, model="base")


def test_chat_and_logprobs(api: Harness) -> None:
    """A greedy token's log-probability is the first of its alternatives, streamed or not."""
    answer = api.chat("hi", max_tokens=5, temperature=0, logprobs=True, top_logprobs=2).json()
    for entry in answer["choices"][0]["logprobs"]["content"]:
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]
        assert len(entry["top_logprobs"]) == 2


def test_scoring(api: Harness) -> None:
    """Echoed log-probabilities without generation are those of a request that generates."""
    scored = api.complete(prompt="the cat", echo=True, logprobs=1, max_tokens=0).json()
    longer = api.complete(prompt="the cat", echo=True, logprobs=1, max_tokens=1).json()
    first = scored["choices"][0]["logprobs"]["token_logprobs"]
    assert first[0] is None
    assert longer["choices"][0]["logprobs"]["token_logprobs"][:-1] == pytest.approx(first, abs=1e-4)


def test_seeds(api: Harness) -> None:
    """A seed gives the same texts again, one for each choice."""

    def texts() -> list[str]:
        body = api.complete(prompt="the", n=3, seed=-5, temperature=1.5, max_tokens=8).json()
        return [choice["text"] for choice in body["choices"]]

    found = texts()
    assert found == texts()
    assert len(set(found)) > 1


def test_metrics_name_the_preset(api: Harness) -> None:
    """What the engine and the catalog report is in the metrics."""
    text(api, model="tutor")
    found = api.get("/metrics").text
    assert (
        'mergeserve_requests_total{mode="merge",outcome="length",path="blend",preset="tutor"}'
        in found
    )
    assert 'mergeserve_preset_revision_info{digest="sha256:' in found
    assert 'mergeserve_preset_edits_total{operation="patch",outcome="changed"}' in found


def test_restart_keeps_edits(files: Path, tmp_path: Path) -> None:
    """After a restart an edit is there, and the file of presets does not undo it."""
    settings = Settings(
        model=str(files / "tiny"),
        device="cpu",
        source=[f"math={files / 'math'}"],
        presets=files / "presets.yaml",
        database_url=f"sqlite:///{tmp_path / 'presets.db'}",
        kv_memory=0.01,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as first:  # type: ignore[arg-type]
        body = {"sources": {"math": {"weight": 0.8}}}
        assert first.request("PATCH", "/v1/presets/tutor", json=body).json()["revision"] == 2
    with running(create_app(settings), None) as second:  # type: ignore[arg-type]
        document = second.get("/v1/presets/tutor").json()
    assert (document["revision"], document["sources"]["math"]["weight"]) == (2, 0.8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "presets.yaml"),
        ("name: x", "a list"),
        ("- name: x\n  methd: linear", "methd"),
        ("- 5", "JSON object"),
    ],
)
def test_bad_file_of_presets(tmp_path: Path, content: str, reason: str) -> None:
    """A file of presets that cannot be read names itself and the reason."""
    path = tmp_path / "presets.yaml"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        read_presets(path)
    assert "presets.yaml" in str(caught.value)


def test_model_that_is_not_there(tmp_path: Path) -> None:
    """A model that cannot be loaded is told, not a traceback."""
    app = create_app(Settings(model=str(tmp_path / "nothing")))
    with running(app, None) as harness:  # type: ignore[arg-type]
        assert "nothing" in harness.get("/readyz").json()["error"]["message"]
