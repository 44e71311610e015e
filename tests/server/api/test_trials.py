"""Sources and presets are tried on plain text behind what serves."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from server.api import trials
from server.api.alignment import alignment, compared
from server.api.trial_reader import BaseReader, TrialReader
from server.compare.text_reader import Listener
from tests.merging.tiny import flat_adapter, flat_base
from tests.server.api.scripted import Harness
from tests.server.api.tiny_server import tiny_server

GOOD = {"name": "tutor", "sources": {"math": {"weight": 0.5}}}
OVERFLOW = {"name": "over", "sources": {"math": {"weight": 1e25}, "code": {"weight": 1e25}}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server whose random base is taken for one that knows text."""
    patch = pytest.MonkeyPatch()
    patch.setattr(trials, "MAX_BASE_LOSS", math.inf)
    root = tmp_path_factory.mktemp("files")
    with tiny_server(root, [GOOD, OVERFLOW], max_rows=8, source_dir=[str(root)]) as harness:
        harness.root = root  # type: ignore[attr-defined]
        yield harness
    patch.undo()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def sample(api: Harness, name: str, **labels: str) -> float | None:
    found: float | None = api.app.state.metrics.registry.get_sample_value(
        f"mergeserve_{name}", labels
    )
    return found


def test_a_merge_that_overflows_is_told(api: Harness) -> None:
    """Its trial is in explain, in the answers' errors and in the metrics, though nobody asked."""

    def warnings() -> list[str]:
        found: list[str] = api.get("/v1/presets/over/explain").json()["warnings"]
        return found

    eventually(lambda: any("not finite" in warning for warning in warnings()))
    assert "count 2e+25 times" in warnings()[0]
    assert sample(api, "preset_suspect", preset="over") == 1


def test_the_error_names_the_preset(api: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Logits that are not finite are an error in the log, with preset, revision and cause; the
    answer says where to look.
    """
    error = api.complete(model="over", prompt="the cat", max_tokens=2).json()["error"]
    assert error["message"].startswith("over@1: the model gave logits that are not finite")
    assert "/v1/presets/over/explain?revision=1" in error["message"]
    (record,) = (r for r in caplog.records if r.levelname == "ERROR")
    assert "over@1 cannot answer" in record.getMessage()
    assert "count 2e+25 times" in record.getMessage()


def test_answers_carry_warnings_where_there_are_any(api: Harness) -> None:
    """`mergeserve.warnings` is absent from the answers of what is not doubted."""
    patch = {"sources": {"math": {"weight": 4.0}}}
    edited = api.request("PATCH", "/v1/presets/tutor", json=patch).json()
    told = api.complete(model="tutor", prompt="a", max_tokens=1).json()["mergeserve"]
    assert edited["suspect"] is True
    assert told["warnings"][0] == edited["warnings"][0]
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"math": {"weight": 0.5}}})
    told = api.complete(model="base", prompt="a", max_tokens=1).json()["mergeserve"]
    assert "warnings" not in told


def test_a_source_is_tried_before_its_registration_is_answered(api: Harness) -> None:
    """The card in the answer has what the trial found: random numbers fit no base."""
    root: Path = api.root  # type: ignore[attr-defined]
    folder = root / "again"
    folder.mkdir()
    for path in (root / "math").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    answer = api.request("POST", "/v1/sources", json={"name": "again", "path": str(folder)})
    assert answer.status_code == 201
    trial = api.app.state.lifecycle.service.catalog.tryouts.trial(answer.json()["digest"])
    assert trial is not None


def test_losses_and_divergences() -> None:
    """They are those of the text, in whatever pieces it comes; what is no number is infinite."""
    torch.manual_seed(0)
    text, logits = [3, 1, 4, 1, 5], torch.randn(3, 5, 8)
    logits[2, 3, 0] = torch.nan
    base = BaseReader(text)
    reader = TrialReader(text, logits[0].log_softmax(-1), {i: Listener((i,)) for i in range(3)})
    for begin, end in ((0, 2), (2, 5)):
        base(begin, logits[:1, begin:end])
        reader(begin, logits[:, begin:end])
    expected = logits.log_softmax(-1)
    losses = (
        -expected[:2].gather(2, torch.tensor(text)[None, :, None].expand(2, -1, 1)).mean((1, 2))
    )
    assert reader.losses[:2] == pytest.approx(losses.tolist(), rel=1e-5)
    assert base.loss == pytest.approx(losses[0].item(), rel=1e-5)
    kl = (expected[0].exp() * (expected[0] - expected[1])).sum(-1).mean()
    assert reader.divergences[:2] == pytest.approx([0.0, kl.item()], abs=1e-5)
    assert (reader.losses[2], reader.divergences[2]) == (math.inf, math.inf)


def test_an_adapter_is_compared_by_groups_of_layers() -> None:
    """Each group's blends have the adapter, or its shuffled self, in these layers only, at one
    weight; together they cover all that it changes.
    """
    base = flat_base(num_layers=9)
    adapter = flat_adapter(base, "sha256:a", contains="")
    blends = compared(adapter, base, divergence=0.1)
    assert len(blends) == 12
    assert len({blend.digest for blend in blends}) == 12
    assert {blend.adapters[0] is adapter for blend in blends[::2]} == {True}
    total = sum(blend.coefficients for blend in blends[::2])
    assert torch.allclose(total, torch.full((1, len(base.linears)), 2.0))
    assert len(compared(flat_adapter(base, "sha256:b", contains=".3."), base, 0.1)) == 2


@pytest.mark.parametrize(
    ("divergences", "expected"),
    [
        ([0.4, 0.1, 0.1, 0.1], 2.0),
        ([0.4, 0.1, 0.001, 0.1], 4.0),
        ([0.4, math.inf, 0.2, 0.1], 2.0),
        ([0.0, 0.0], None),
        ([], None),
    ],
)
def test_alignment(divergences: list[float], expected: float | None) -> None:
    """The geometric mean over the groups that do something."""
    assert alignment(divergences) == (None if expected is None else pytest.approx(expected))
