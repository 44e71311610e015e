"""What explain says of a preset: its plan in plain JSON, and its ensemble twin."""

from dataclasses import asdict

from pydantic import JsonValue

from merging.explanation import Explanation, Group, SourceExplanation
from merging.plan import Plan
from merging.recipe import BASE
from server.presets.document import PresetDocument
from server.presets.record import PresetRecord


def explain(record: PresetRecord, plan: Plan) -> dict[str, JsonValue]:
    """The resolved coefficient of every source and group of tensors, and what follows from them."""
    explanation = plan.explain()
    return {
        **_header(record),
        "method": record.document.method,
        "reason": explanation.reason,
        "num_bytes": explanation.num_bytes,
        "max_rank": explanation.max_rank,
        "sources": [_source_json(source) for source in explanation.sources],
        "warnings": list(explanation.warnings),
        "twin": twin(record.document, explanation),
    }


def explain_failed(record: PresetRecord) -> dict[str, JsonValue]:
    """Why a preset cannot be built."""
    return {**_header(record), "method": record.document.method, "reasons": list(record.reasons)}


def twin(document: PresetDocument, explanation: Explanation) -> dict[str, JsonValue]:
    """The ensemble that the merge approximates, and whether their coefficients are the same.

    They are if no coefficient depends on the layer or the tensor; else the twin has their means.
    """
    rule = document.ensemble.rule
    coefficients = {source.name: source.coefficient for source in explanation.sources}
    reasons = list(_rule_problems(rule, coefficients))
    result: dict[str, JsonValue] = {
        "available": False,
        "reason": "; ".join(("ensembles are not available in this release", *reasons)),
        "rule": rule,
        "exact": all(_is_uniform(source) for source in explanation.sources),
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


def _rule_problems(rule: str, coefficients: dict[str, float]) -> list[str]:
    problems = []
    if rule != "task_arithmetic" and sum(coefficients.values()) <= 0:
        problems.append(f"{rule} needs coefficients with a positive sum")
    if rule == "linear_pool" and any(value < 0 for value in coefficients.values()):
        problems.append("linear_pool takes no negative coefficient")
    return problems


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
    }
