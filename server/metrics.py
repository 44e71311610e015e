"""Prometheus metrics of one application, in a registry of its own.

It watches the engine and the catalog; what it keeps per preset is bounded by the number of presets.
"""

import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.engine.stats import RequestStats, StepStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "mergeserve"
MAX_PRESETS = 200
OTHER = "other"
"""Label of the presets beyond the first `MAX_PRESETS`."""

# Buckets as vLLM's, where the meaning is the same.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
EDIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
BUILD_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

DIVERGENCE_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.4)
FIDELITY_BUCKETS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 1.0)
AGREEMENT_BUCKETS = (0.0, 0.2, 0.25, 0.34, 0.4, 0.5, 0.6, 0.67, 0.75, 0.8, 0.9, 1.0)

REQUEST_LABELS = ("preset", "mode", "path")


class _WithoutCreated(Collector):
    """Leaves out the time at which each series began: as many series again, and of no use."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class Metrics:
    """Every metric of one server. Implements EngineObserver, CatalogObserver, VariantObserver."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._presets: Mapping[str, tuple[int, str]] = {}
        self._labels: set[str] = set()
        self._define_requests()
        self._define_engine()
        self._define_presets()
        self._define_variants()

    def render(self) -> bytes:
        """All metrics as Prometheus text."""
        return generate_latest(_WithoutCreated(self.registry))

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(
            name, text, labels, buckets=buckets, namespace=PREFIX, registry=self.registry
        )

    def _define_requests(self) -> None:
        self._http_requests = self._counter(
            "http_requests", "HTTP requests answered.", ("method", "route", "status")
        )
        self._requests = self._counter(
            "requests", "Completions that ended, by how.", (*REQUEST_LABELS, "outcome")
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.", REQUEST_LABELS)
        self._generation_tokens = self._counter(
            "generation_tokens", "Tokens generated.", REQUEST_LABELS
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            FIRST_TOKEN_BUCKETS,
            REQUEST_LABELS,
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds",
            "Between two tokens of a request.",
            INTER_TOKEN_BUCKETS,
            REQUEST_LABELS,
        )
        self._end_to_end = self._histogram(
            "e2e_request_latency_seconds",
            "From a request's arrival to its end.",
            REQUEST_BUCKETS,
            REQUEST_LABELS,
        )
        self._queue_time = self._histogram(
            "request_queue_time_seconds",
            "From a request's arrival to its first step.",
            REQUEST_BUCKETS,
            REQUEST_LABELS,
        )
        self._divergence = self._histogram(
            "ensemble_member_divergence_nats",
            "Generalised Jensen-Shannon divergence of an ensemble's members, at sampled tokens.",
            DIVERGENCE_BUCKETS,
            ("preset", "mode"),
        )
        self._agreement = self._histogram(
            "ensemble_member_agreement_ratio",
            "Share of an ensemble's members whose best token is the ensemble's, at sampled tokens.",
            AGREEMENT_BUCKETS,
            ("preset", "mode"),
        )
        self._scored_texts = self._counter(
            "scored_texts",
            "Given texts that were scored, by how it ended.",
            (*REQUEST_LABELS, "outcome"),
        )
        self._scored_tokens = self._counter(
            "scored_tokens", "Tokens of given texts, with what stands before them.", REQUEST_LABELS
        )
        self._background_requests = self._counter(
            "background_requests", "Background requests that ended, by how.", ("outcome",)
        )
        self._fidelity_agreement = self._histogram(
            "fidelity_agreement_ratio",
            "Share of a sampled answer's tokens at which both modes have the same best one.",
            FIDELITY_BUCKETS,
            ("preset",),
        )
        self._fidelity_overlap = self._histogram(
            "fidelity_overlap_ratio",
            "Mean overlap of both modes' distributions over a sampled answer.",
            FIDELITY_BUCKETS,
            ("preset",),
        )
        self._fidelity_divergence = self._histogram(
            "fidelity_divergence_nats",
            "Mean Jensen-Shannon divergence of both modes over a sampled answer.",
            DIVERGENCE_BUCKETS,
            ("preset",),
        )
        self._fidelity_dropped = self._counter(
            "fidelity_dropped", "Sampled answers that were not scored.", ("reason",)
        )
        self._by_preset = (
            *(self._fidelity_agreement, self._fidelity_overlap, self._fidelity_divergence),
            *(self._scored_texts, self._scored_tokens),
            *(self._requests, self._prompt_tokens, self._generation_tokens, self._first_token),
            *(self._inter_token, self._end_to_end, self._queue_time),
            *(self._divergence, self._agreement),
        )

    def _define_engine(self) -> None:
        self._running = self._gauge("num_requests_running", "Requests that have rows.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a row.")
        self._background = self._gauge(
            "num_background_requests", "Background requests that run or wait."
        )
        self._rows = self._gauge("num_rows_running", "Rows of the last step.")
        self._kv_usage = self._gauge("kv_cache_usage_ratio", "Share of the KV cache in use.")
        self._active_rank = self._gauge(
            "active_adapter_rank", "Ranks of all adapters in the last step, summed."
        )
        self._preemptions = self._counter("num_preemptions", "Requests put back in the queue.")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self._step_seconds = self._histogram(
            "engine_step_seconds", "Duration of an engine step.", STEP_BUCKETS
        )
        self._step_rows = self._histogram(
            "engine_step_rows", "Rows of an engine step.", ROW_BUCKETS
        )

    def _define_presets(self) -> None:
        self._revision_info = self._gauge(
            "preset_revision_info",
            "1 for the revision that a preset serves.",
            ("preset", "revision", "digest"),
        )
        self._preset_suspect = self._gauge(
            "preset_suspect", "1 for a preset that is likely to write gibberish.", ("preset",)
        )
        self._source_suspect = self._gauge(
            "source_suspect",
            "1 for a source that is likely to be of another base, or broken.",
            ("source",),
        )
        self._edits = self._counter(
            "preset_edits", "Edits of presets, by outcome.", ("operation", "outcome")
        )
        self._edit_seconds = self._histogram(
            "preset_edit_seconds", "Duration of an edit's phases.", EDIT_BUCKETS, ("phase",)
        )

    def _define_variants(self) -> None:
        self._builds = self._counter(
            "variant_builds", "Builds of merged weights, by outcome.", ("method", "outcome")
        )
        self._build_seconds = self._histogram(
            "variant_build_seconds",
            "Duration of the phases of builds that succeeded.",
            BUILD_BUCKETS,
            ("method", "phase"),
        )
        self._variants = self._gauge("variants_resident", "Merged weights in memory.")
        self._variant_bytes = self._gauge("variant_bytes", "Bytes of merged weights in memory.")
        self._variant_kv_bytes = self._gauge(
            "variant_kv_bytes",
            "Bytes that the KV cache of merged models may take in layers beyond the base's.",
        )
        self._variant_leaving_bytes = self._gauge(
            "variant_leaving_bytes",
            "Bytes of variants that were replaced or evicted, and that requests still run on.",
        )
        self._variant_cache_bytes = self._gauge(
            "variant_cache_bytes", "Bytes that builds keep for the next one."
        )
        self._evictions = self._counter(
            "variant_evictions", "Merged weights that had to make room for others."
        )
        self._cold_hits = self._counter(
            "variant_cold_hits", "Requests for merged weights that were not in memory."
        )

    # The HTTP server

    def http_request(self, method: str, route: str, status: int) -> None:
        """An answer was sent. `route` is a template such as `/v1/presets/{name}`."""
        self._http_requests.labels(method, route, str(status)).inc()

    # The engine

    def step(self, stats: StepStats) -> None:
        """A step was computed."""
        self._running.set(stats.num_groups_running)
        self._waiting.set(stats.num_groups_waiting)
        self._background.set(stats.num_groups_background)
        is_busy = stats.num_groups_running + stats.num_groups_background > 0
        self._rows.set(stats.num_rows if is_busy else 0)
        self._kv_usage.set(stats.kv_cache_usage)
        self._active_rank.set(stats.active_rank)
        self._preemptions.inc(stats.num_preempted)
        self._prefix_queries.inc(stats.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits)
        self._step_seconds.observe(stats.seconds)
        self._step_rows.observe(stats.num_rows)

    def idle(self) -> None:
        """Nothing runs or waits; the last step may not have told, if what ran was aborted."""
        for gauge in (self._running, self._waiting, self._background, self._rows):
            gauge.set(0)

    def finished(self, stats: RequestStats) -> None:
        """A request ended. Scored texts and background requests have latencies that say nothing of
        what callers who generate wait for, so they are counted apart.
        """
        labels = (self._preset_label(stats.label), stats.mode, stats.path)
        if stats.is_scored:
            self._scored_texts.labels(*labels, stats.outcome).inc()
            self._scored_tokens.labels(*labels).inc(stats.prompt_tokens)
        if stats.is_background:
            self._background_requests.labels(stats.outcome).inc()
        if stats.is_scored or stats.is_background:
            return
        self._requests.labels(*labels, stats.outcome).inc()
        self._prompt_tokens.labels(*labels).inc(stats.prompt_tokens)
        self._generation_tokens.labels(*labels).inc(stats.generation_tokens)
        self._queue_time.labels(*labels).observe(stats.queue_seconds)
        self._end_to_end.labels(*labels).observe(stats.e2e_seconds)
        if stats.time_to_first_token_seconds is not None:
            self._first_token.labels(*labels).observe(stats.time_to_first_token_seconds)
        inter_token = self._inter_token.labels(*labels)
        for seconds in stats.inter_token_seconds:
            inter_token.observe(seconds)
        for disagreement in stats.disagreements:
            self._divergence.labels(labels[0], stats.mode).observe(disagreement.divergence)
            self._agreement.labels(labels[0], stats.mode).observe(disagreement.agreement)

    def _preset_label(self, preset: str) -> str:
        with self._lock:
            if preset not in self._labels and len(self._labels) >= MAX_PRESETS:
                return OTHER
            self._labels.add(preset)
            return preset

    def fidelity(self, preset: str, *, agreement: float, overlap: float, divergence: float) -> None:
        """An answer was scored by both modes."""
        label = self._preset_label(preset)
        self._fidelity_agreement.labels(label).observe(agreement)
        self._fidelity_overlap.labels(label).observe(overlap)
        self._fidelity_divergence.labels(label).observe(divergence)

    def fidelity_dropped(self, reason: str) -> None:
        """A sampled answer was not scored."""
        self._fidelity_dropped.labels(reason).inc()

    # The catalog

    def preset_edited(
        self, preset: str, operation: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """An edit ended."""
        self._edits.labels(operation, outcome).inc()
        for phase, seconds in seconds_by_phase.items():
            self._edit_seconds.labels(phase).observe(seconds)

    def presets_changed(self, revisions: Mapping[str, tuple[int, str]]) -> None:
        """Presets serve other revisions now."""
        with self._lock:
            before, self._presets = self._presets, dict(revisions)
            for preset, (revision, digest) in before.items():
                if revisions.get(preset) != (revision, digest):
                    self._revision_info.remove(preset, str(revision), digest)
            for preset, (revision, digest) in revisions.items():
                self._revision_info.labels(preset, str(revision), digest).set(1)
            for preset in before.keys() - revisions.keys():
                self._forget(preset)

    def preset_suspected(self, preset: str, is_suspect: bool | None) -> None:
        """What is known of a preset changed."""
        _set_or_remove(self._preset_suspect, preset, is_suspect)

    def source_suspected(self, source: str, is_suspect: bool | None) -> None:
        """What is known of a source changed."""
        _set_or_remove(self._source_suspect, source, is_suspect)

    # Variants

    def variant_built(
        self, method: str, outcome: str, seconds_by_phase: Mapping[str, float]
    ) -> None:
        """A build ended."""
        self._builds.labels(method, outcome).inc()
        for phase, seconds in seconds_by_phase.items():
            self._build_seconds.labels(method, phase).observe(seconds)

    def variants_changed(
        self,
        num_variants: int,
        num_bytes: int,
        kv_bytes: int,
        cache_bytes: int,
        num_evicted: int,
    ) -> None:
        """What is in memory now."""
        self._variants.set(num_variants)
        self._variant_bytes.set(num_bytes)
        self._variant_kv_bytes.set(kv_bytes)
        self._variant_cache_bytes.set(cache_bytes)
        self._evictions.inc(num_evicted)

    def watch_leaving(self, num_bytes: Callable[[], int]) -> None:
        """Whom to ask for the bytes that requests still hold."""
        self._variant_leaving_bytes.set_function(num_bytes)

    def cold_hit(self) -> None:
        """A request waits for a build."""
        self._cold_hits.inc()

    def _forget(self, preset: str) -> None:
        """Drop the series of a preset that was deleted."""
        self._labels.discard(preset)
        for metric in self._by_preset:
            metric.remove_by_labels({"preset": preset})


def _set_or_remove(gauge: Gauge, label: str, value: bool | None) -> None:
    """Set one series of a gauge, or drop it."""
    if value is None:
        gauge.remove(label)
    else:
        gauge.labels(label).set(value)
