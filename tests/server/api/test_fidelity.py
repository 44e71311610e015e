"""Answers are scored by the preset's other mode, in the background, or dropped and counted."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import wraps

import pytest
import torch

from server.api.fidelity import MAX_PENDING, AgreementReader, Fidelity
from server.api.prompts import EncodedPrompt
from server.compare.text_reader import Listener
from server.engine.async_engine import Stream
from server.engine.request import Output
from server.presets.catalog import Edit
from server.presets.served import Overrides, Served
from tests.server.api.scripted import Harness, ScriptedEngine, ids, silent
from tests.server.api.tiny_server import tiny_server
from tests.server.presets.tiny import World, preset, reading_threads

MEASURES = ("agreement_ratio", "overlap_ratio", "divergence_nats")
SOURCES = {"math": {"weight": 0.7}, "code": {"weight": 0.5}}
PRESETS = [
    {"name": "tutor", "sources": SOURCES, "overrides": "none"},
    {"name": "alone", "sources": {"math": {"weight": 1.0}}},
    {"name": "closed", "sources": {"math": {"weight": 1.0}}, "mode": "ensemble"},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server that samples every answer, over a tiny model."""
    root = tmp_path_factory.mktemp("files")
    with tiny_server(root, PRESETS, max_rows=8, fidelity_sample=1.0) as harness:
        yield harness


def in_loop(test: Callable[["Stage"], Awaitable[None]]) -> Callable[["Stage"], None]:
    """Run a test on an event loop."""

    @wraps(test)
    def run(stage: "Stage") -> None:
        async def main() -> None:
            await test(stage)

        asyncio.run(main())

    return run


def metric(api: Harness, name: str, **labels: str) -> float | None:
    """One sample of the metrics."""
    found: float | None = api.app.state.metrics.registry.get_sample_value(
        f"mergeserve_fidelity_{name}", labels
    )
    return found


def scored(api: Harness, model: str) -> tuple[float, float, float]:
    """Ask a preset something; agreement, overlap and divergence of the answer, once scored."""
    name = model.partition(":")[0]
    before = metric(api, "agreement_ratio_count", preset=name) or 0.0
    sums = [_sum(api, part, name) for part in MEASURES]
    response = api.complete(
        model=model, prompt="the cat sat", max_tokens=20, ignore_eos=True, seed=1
    )
    assert response.status_code == 200, response.text
    deadline = time.monotonic() + 20
    while (metric(api, "agreement_ratio_count", preset=name) or 0.0) == before:
        assert time.monotonic() < deadline, "the answer was not scored"
        time.sleep(0.01)
    agreement, overlap, divergence = (
        _sum(api, part, name) - old for part, old in zip(MEASURES, sums, strict=True)
    )
    return agreement, overlap, divergence


def _sum(api: Harness, name: str, preset: str) -> float:
    return metric(api, f"{name}_sum", preset=preset) or 0.0


def test_modes_that_differ_show_it(tiny: Harness) -> None:
    """A merge of two adapters is not its ensemble on a model that is not linear, whatever callers
    of the preset may ask for; both are distributions, so the measures are within their bounds.
    """
    agreement, overlap, divergence = scored(tiny, "tutor")
    assert 0 <= agreement <= 1
    assert 0 < overlap < 1
    assert 0 < divergence < 0.7


@pytest.mark.parametrize("model", ["alone", "alone:ensemble", "closed"])
def test_modes_that_are_one_agree(tiny: Harness, model: str) -> None:
    """One source at weight 1 is the same model merged and as an ensemble, from either side."""
    agreement, overlap, divergence = scored(tiny, model)
    assert agreement == 1
    assert overlap == pytest.approx(1, abs=1e-4)
    assert divergence == pytest.approx(0, abs=1e-5)


def test_sampling_leaves_answers_alone(tiny: Harness) -> None:
    """Only presets as they are get sampled: not the base, sources, or changed weights."""
    tiny.complete(model="base", max_tokens=3)
    tiny.complete(model="math", max_tokens=3)
    tiny.complete(model="alone", max_tokens=3, mergeserve={"weights": {"math": 0.3}})
    time.sleep(0.3)
    text = tiny.get("/metrics").text
    assert 'fidelity_agreement_ratio_count{preset=""}' not in text
    assert 'fidelity_agreement_ratio_count{preset="math"}' not in text
    assert "mergeserve_fidelity_dropped_total{" not in text


def test_the_reader_measures_what_it_says() -> None:
    """Against a direct computation, in two pieces: shares of best tokens, overlap, divergence."""
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 50)
    reader = AgreementReader(Listener((0,)), Listener((1, 0), lambda rows: rows.mean(dim=0)))
    reader(0, logits[:, :4])
    reader(4, logits[:, 4:])
    p, q = logits[0].softmax(-1), logits.mean(dim=0).softmax(-1)
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    expected = [
        (p.argmax(-1) == q.argmax(-1)).float().mean().item(),
        (1 - (p - q).abs().sum(-1) / 2).mean().item(),
        js.mean().item(),
    ]
    assert reader.means == pytest.approx(expected, abs=1e-5)


class Seen:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.scored: list[tuple[str, float]] = []

    def fidelity(self, preset: str, *, agreement: float, overlap: float, divergence: float) -> None:
        self.scored.append((preset, agreement))

    def fidelity_dropped(self, reason: str) -> None:
        self.dropped.append(reason)


class Stage:
    """A sampler over a scripted engine and a catalog with the preset tutor."""

    def __init__(self, world: World) -> None:
        self.catalog = world.open_with_sources()
        self.catalog.seed_presets([preset()], "the test")
        self.engine = ScriptedEngine()
        self.engine.script = silent
        self.seen = Seen()
        self.fidelity = Fidelity(self.engine, self.catalog, self.seen, 0.25, lambda: 0.2)  # type: ignore[arg-type]
        self.served = self.catalog.resolve("tutor")

    async def offer(self, served: Served | None = None, answer: str = "yes") -> None:
        """Offer an answer, and wait until it was dropped or is being read."""
        before = self._progress
        self.fidelity.offer(served or self.served, EncodedPrompt(ids("hello")), ids(answer))
        while self._progress == before:
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Give up what is pending."""
        pending = list(self.fidelity._pending)
        self.fidelity.close()
        await asyncio.gather(*pending, return_exceptions=True)

    @property
    def _progress(self) -> tuple[int, int]:
        return len(self.seen.dropped), len(self.engine.requests)


@pytest.fixture
def stage(world: World) -> Stage:
    return Stage(world)


@in_loop
async def test_an_answer_is_one_background_group_of_both_modes(stage: Stage) -> None:
    """The group has the rows of both modes, reads the answer and nothing else, and is of background
    priority.
    """
    await stage.offer()
    (request,) = stage.engine.requests
    assert request.priority == "background"
    assert request.num_read == 3
    assert len({member.weights.digest for member in request.members}) == len(request.members) >= 2
    assert all(member.prompt == ids("helloyes") for member in request.members)
    await stage.close()


@in_loop
async def test_what_there_is_no_room_for_is_dropped_and_counted(stage: Stage) -> None:
    """A bounded number waits; beyond it, under live load, and after an edit, answers are dropped
    with the reason.
    """
    for _ in range(MAX_PENDING + 2):
        await stage.offer()
    assert stage.seen.dropped == ["queue_full"] * 2
    assert len(stage.engine.requests) == MAX_PENDING
    await stage.close()
    await stage.offer()
    assert stage.seen.dropped[2:] == ["closed"]
    assert stage.engine.cancelled == set(range(MAX_PENDING))


@in_loop
async def test_under_live_load_nothing_is_scored(stage: Stage) -> None:
    """When live requests wait for rows, a sampled answer is dropped at once."""
    stage.engine.streams = [Stream(lambda _: None) for _ in range(stage.engine.config.max_rows + 1)]
    await stage.offer()
    assert stage.seen.dropped == ["busy"]
    assert stage.engine.requests == []


@in_loop
async def test_a_revision_that_no_longer_serves_is_dropped(stage: Stage) -> None:
    """An answer of an older revision says nothing of the current one."""
    await stage.offer(replace(stage.served, revision=0))
    await stage.offer(replace(stage.served, preset="gone"))
    await stage.offer(answer="")
    assert stage.seen.dropped == ["not_at_hand", "not_at_hand", "empty"]


@in_loop
async def test_prompts_of_their_own_are_not_compared(stage: Stage) -> None:
    """A preset whose members read something else than the request is not scored, were it only an
    empty system prompt.
    """
    for system in ("Be brief.", ""):
        document = preset("own", ensemble={"members": {"math": {"system": system}}})
        stage.catalog.replace("own", document, edit=Edit())
        await stage.offer(stage.catalog.resolve("own"))
    assert stage.seen.dropped == ["own_prompts"] * 2
    assert stage.engine.requests == []


@in_loop
async def test_members_that_are_old_revisions_are_not_read_again(stage: Stage) -> None:
    """What serves has the plans of its members, in either mode: no database is read."""
    members = {"old": {"model": "tutor@1", "weight": 0.5}}
    stage.catalog.create(preset("mixed", ensemble={"members": members}), edit=Edit())
    stage.catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    threads = reading_threads(stage.catalog)
    await stage.offer(stage.catalog.resolve("mixed"))
    assert len(stage.engine.requests) == 1
    assert threads == []
    await stage.close()


@in_loop
async def test_a_group_that_fails_is_counted(stage: Stage) -> None:
    """NaN in one mode is no measurement."""
    stage.engine.script = lambda request: [Output("", (), finish_reason="error", error="NaN")]
    await stage.offer()
    for task in list(stage.fidelity._pending):
        await task
    assert (stage.seen.dropped, stage.seen.scored) == (["failed"], [])


def test_only_a_share_is_wanted(stage: Stage) -> None:
    """A request is sampled if its number is below the share, and if it asks for nothing but a
    mode.
    """
    assert stage.fidelity.wants(stage.served, None)
    assert stage.fidelity.wants(stage.served, Overrides(mode="merge"))
    assert not stage.fidelity.wants(stage.served, Overrides(weights={"math": 1.0}))
    assert not stage.fidelity.wants(stage.catalog.resolve("base"), None)
    stage.fidelity._draw = lambda: 0.25
    assert not stage.fidelity.wants(stage.served, None)
