"""Metrics: names, labels, and what is counted."""

import re
from dataclasses import replace

import pytest

from server.engine.stats import RequestStats, StepStats
from server.metrics import MAX_PRESETS, Metrics

STEP = StepStats(
    seconds=0.02,
    num_rows=3,
    num_tokens=40,
    num_groups_running=3,
    num_groups_waiting=2,
    num_groups_background=1,
    kv_cache_usage=0.25,
    num_preempted=1,
    prefix_queries=64,
    prefix_hits=32,
    active_rank=16,
)


def ended(label: str = "tutor", first: float | None = 0.05) -> RequestStats:
    """A request that ended."""
    return RequestStats(
        label=label,
        path="blend",
        mode="merge",
        outcome="stop",
        prompt_tokens=10,
        generation_tokens=3,
        queue_seconds=0.01,
        time_to_first_token_seconds=first,
        inter_token_seconds=(0.02, 0.03),
        e2e_seconds=0.1,
    )


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample."""
    found: float | None = metrics.registry.get_sample_value(f"mergeserve_{name}", labels)
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_names_follow_the_conventions(metrics: Metrics) -> None:
    """Names have our prefix and no colon, counters end in _total, and each is described."""
    metrics.step(STEP)
    metrics.finished(ended())
    metrics.preset_edited("tutor", "patch", "changed", {"plan": 0.1})
    metrics.presets_changed({"tutor": (1, "sha256:0")})
    text = metrics.render().decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"mergeserve_[a-z0-9_]+", name) for name, _ in names)
    assert all(name.endswith("_total") is (kind == "counter") for name, kind in names)
    assert len(re.findall(r"^# HELP \S+ \S+", text, re.MULTILINE)) == len(names)
    assert "_created" not in text


def test_names_of_the_contract(metrics: Metrics) -> None:
    """The metrics that dashboards rely on are there under their names."""
    text = metrics.render().decode()
    names = """
        time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
        request_queue_time_seconds num_requests_running num_requests_waiting prompt_tokens_total
        generation_tokens_total kv_cache_usage_ratio prefix_cache_hits_total
        prefix_cache_queries_total
        num_rows_running engine_step_seconds engine_step_rows preset_revision_info
        preset_edits_total preset_edit_seconds requests_total
    """
    for name in names.split():
        assert f"# TYPE mergeserve_{name} " in text


def test_step(metrics: Metrics) -> None:
    """A step sets the gauges and adds to the counters."""
    metrics.step(STEP)
    metrics.step(STEP)
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "num_rows_running") == 3
    assert value(metrics, "kv_cache_usage_ratio") == 0.25
    assert value(metrics, "prefix_cache_hits_total") == 64
    assert value(metrics, "num_preemptions_total") == 2
    assert value(metrics, "engine_step_seconds_count") == 2
    assert value(metrics, "engine_step_rows_sum") == 6


def test_request(metrics: Metrics) -> None:
    """A request is counted under its preset, mode and path."""
    metrics.finished(ended())
    labels = {"preset": "tutor", "mode": "merge", "path": "blend"}
    assert value(metrics, "requests_total", outcome="stop", **labels) == 1
    assert value(metrics, "prompt_tokens_total", **labels) == 10
    assert value(metrics, "generation_tokens_total", **labels) == 3
    assert value(metrics, "inter_token_latency_seconds_count", **labels) == 2
    assert value(metrics, "time_to_first_token_seconds_sum", **labels) == 0.05
    assert value(metrics, "e2e_request_latency_seconds_sum", **labels) == 0.1
    assert value(metrics, "request_queue_time_seconds_sum", **labels) == 0.01


def test_request_without_a_token(metrics: Metrics) -> None:
    """A request that was aborted before its first token has no time to it."""
    metrics.finished(ended(first=None))
    labels = {"preset": "tutor", "mode": "merge", "path": "blend"}
    assert not value(metrics, "time_to_first_token_seconds_count", **labels)


def test_labels_are_bounded(metrics: Metrics) -> None:
    """However many presets there are, their series are bounded, and none is lost."""
    for number in range(MAX_PRESETS + 50):
        metrics.finished(ended(f"preset-{number}"))
    text = metrics.render().decode()
    assert len(re.findall(r"^mergeserve_requests_total", text, re.MULTILINE)) == MAX_PRESETS + 1
    labels = {"preset": "other", "mode": "merge", "path": "blend"}
    assert value(metrics, "requests_total", outcome="stop", **labels) == 50


def test_revision_info(metrics: Metrics) -> None:
    """Each preset has one series, for the revision that serves now."""
    metrics.presets_changed({"tutor": (1, "sha256:a"), "coder": (1, "sha256:b")})
    metrics.presets_changed({"tutor": (2, "sha256:c")})
    text = metrics.render().decode()
    assert re.findall(r"^mergeserve_preset_revision_info.*$", text, re.MULTILINE) == [
        'mergeserve_preset_revision_info{digest="sha256:c",preset="tutor",revision="2"} 1.0'
    ]


def test_deleted_preset_makes_room(metrics: Metrics) -> None:
    """The series of a preset that is deleted go with it."""
    metrics.presets_changed({"tutor": (1, "sha256:a")})
    metrics.finished(ended("tutor"))
    metrics.presets_changed({})
    assert 'preset="tutor"' not in metrics.render().decode()


def test_edits(metrics: Metrics) -> None:
    """Edits are counted by outcome, and their phases are timed."""
    metrics.preset_edited("", "patch", "refused", {"validate": 0.001})
    metrics.preset_edited("tutor", "patch", "changed", {"validate": 0.001, "commit": 0.02})
    assert value(metrics, "preset_edits_total", operation="patch", outcome="refused") == 1
    assert value(metrics, "preset_edit_seconds_count", phase="validate") == 2
    assert value(metrics, "preset_edit_seconds_sum", phase="commit") == 0.02


def test_each_server_has_its_own(metrics: Metrics) -> None:
    """Two servers in one process do not share metrics."""
    metrics.step(STEP)
    assert value(Metrics(), "num_requests_running") == 0


def test_variants() -> None:
    """Builds are counted by method and outcome, timed by phase, and what is in memory is told."""
    metrics = Metrics()
    metrics.variant_built("ties", "built", {"merge": 0.2, "finish": 0.01})
    metrics.variant_built("ties", "refused", {})
    metrics.variants_changed(2, 1000, 50, 3)
    metrics.variants_changed(1, 500, 60, 1)
    metrics.cold_hit()
    text = metrics.render().decode()
    for line in (
        'mergeserve_variant_builds_total{method="ties",outcome="built"} 1.0',
        'mergeserve_variant_builds_total{method="ties",outcome="refused"} 1.0',
        'mergeserve_variant_build_seconds_count{method="ties",phase="merge"} 1.0',
        "mergeserve_variants_resident 1.0",
        "mergeserve_variant_bytes 500.0",
        "mergeserve_variant_cache_bytes 60.0",
        "mergeserve_variant_evictions_total 4.0",
        "mergeserve_variant_cold_hits_total 1.0",
    ):
        assert line in text


def test_scored_and_background_requests_are_counted_apart(metrics: Metrics) -> None:
    """Their latencies would say nothing of what callers who generate wait for."""
    scored = replace(ended(), is_scored=True, outcome="length")
    metrics.finished(scored)
    metrics.finished(replace(scored, is_background=True))
    metrics.finished(replace(ended(), is_background=True))
    labels = {"preset": "tutor", "mode": "merge", "path": "blend"}
    assert value(metrics, "scored_texts_total", **labels, outcome="length") == 2
    assert value(metrics, "scored_tokens_total", **labels) == 20
    assert value(metrics, "background_requests_total", outcome="stop") == 1
    assert value(metrics, "requests_total", **labels, outcome="stop") is None
    assert value(metrics, "e2e_request_latency_seconds_count", **labels) is None
    metrics.step(STEP)
    assert value(metrics, "num_background_requests") == 1
    metrics.idle()
    assert value(metrics, "num_background_requests") == 0
