"""What explain says of a preset: its plan in plain JSON, and its ensemble twin."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from pydantic import JsonValue

from merging.explanation import Explanation, Group, SourceExplanation
from merging.methods import METHODS
from merging.plan import Plan
from merging.recipe import BASE
from server.presets.document import PresetDocument
from server.presets.record import PresetRecord
from server.presets.shelf import Built
from server.presets.sources import Source


def explain(
    record: PresetRecord,
    plan: Plan,
    sources: Mapping[str, Source],
    built: Built | None = None,
    kv_bytes: int = 0,
) -> dict[str, JsonValue]:
    """What every source and group of tensors resolves to, and what follows from that.

    `sources` are the registered ones, whose own warnings are repeated. `built` is the variant, if
    the plan is one and it is there; `kv_bytes` what its KV cache takes at most in layers beyond the
    base's.
    """
    explanation = plan.explain()
    return {
        **_header(record),
        "method": record.document.method,
        "reason": explanation.reason,
        "num_bytes": explanation.num_bytes if built is None else built.variant.num_bytes,
        "max_rank": explanation.max_rank,
        "build_seconds": explanation.build_seconds,
        "sources": [_source_json(source) for source in explanation.sources],
        **_variant_json(explanation, built, kv_bytes),
        "warnings": [*explanation.warnings, *_source_warnings(plan, sources)],
        "twin": twin(record.document, explanation),
    }


def _variant_json(
    explanation: Explanation, built: Built | None, kv_bytes: int
) -> dict[str, JsonValue]:
    """What only a variant has: the seconds of its last build are None if it is not there."""
    if explanation.path != "variant":
        return {}
    seconds: JsonValue = None if built is None else {**built.seconds_by_phase}
    return {
        "parameters": [_group_json(group) for group in explanation.parameters],
        "num_layers": explanation.num_layers,
        "num_tensors_written": explanation.num_written,
        "kv_bytes": kv_bytes,
        "variant": {
            "seconds": None if built is None else built.seconds,
            "seconds_by_phase": seconds,
        },
    }


def explain_failed(record: PresetRecord) -> dict[str, JsonValue]:
    """Why a preset cannot be built."""
    return {**_header(record), "method": record.document.method}


def twin(document: PresetDocument, explanation: Explanation) -> dict[str, JsonValue]:
    """The ensemble that the merge approximates, and whether their coefficients are the same.

    They are if the method is linear and no coefficient depends on the layer or the tensor; else
    the twin has their means. A pool takes the weights as they were before the method combined them.
    """
    rule, reasons = document.ensemble.rule, []
    coefficients = {s.name: s.coefficient for s in explanation.sources if s.coefficient is not None}
    if len(coefficients) < len(explanation.sources):
        reasons = [f"{document.method} has no weights that the members could take"]
    is_linear = explanation.path != "variant" or METHODS[document.method].kind == "linear"
    if rule != "task_arithmetic":
        coefficients = {s.name: s.weight for s in explanation.sources if s.weight is not None}
        reasons += _pool_problems(rule, coefficients)
    result: dict[str, JsonValue] = {
        "available": False,
        "reason": "; ".join(("ensembles are not available in this release", *reasons)),
        "rule": rule,
        "exact": is_linear and all(_is_uniform(source) for source in explanation.sources),
        "members": [],
    }
    if not reasons:
        members = _members(rule, coefficients)
        result["members"] = [{"source": s, "coefficient": c} for s, c in members.items()]
    return result


def _members(rule: str, coefficients: dict[str, float]) -> dict[str, float]:
    if rule == "task_arithmetic":
        tasks = {name: value for name, value in coefficients.items() if name != BASE}
        return {BASE: 1.0 - sum(tasks.values()), **tasks}
    total = sum(coefficients.values())
    return {name: value / total for name, value in coefficients.items()}


def _pool_problems(rule: str, weights: dict[str, float]) -> list[str]:
    problems = []
    if sum(weights.values()) <= 0:
        problems.append(f"{rule} needs weights with a positive sum")
    if rule == "linear_pool" and any(value < 0 for value in weights.values()):
        problems.append("linear_pool takes no negative weight")
    return problems


def _source_warnings(plan: Plan, sources: Mapping[str, Source]) -> Iterator[str]:
    for name, content in sorted(plan.sources.items()):
        source = sources.get(name)
        if source is not None and source.digest == content.digest:
            yield from (f"sources.{name}: {warning}" for warning in source.warnings)


def _is_uniform(source: SourceExplanation) -> bool:
    return len({group.coefficient for group in source.groups}) <= 1


def _header(record: PresetRecord) -> dict[str, JsonValue]:
    return {
        "preset": record.name,
        "revision": record.revision,
        "digest": record.digest,
        "mode": record.document.mode,
        "state": record.state,
        "path": record.path,
        **({"reasons": list(record.reasons)} if record.reasons else {}),
    }


def _source_json(source: SourceExplanation) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = asdict(source)
    fields["ranks"] = list(source.ranks)
    fields["groups"] = [_group_json(group) for group in source.groups]
    return fields


def _group_json(group: Group) -> dict[str, JsonValue]:
    return {
        "layers": None if group.layers is None else list(group.layers),
        "modules": list(group.modules),
        "coefficient": group.coefficient,
        **({"values": dict(group.values)} if group.values else {}),
    }
