"""What explain says of a preset: its plan in plain JSON, and its ensemble twin."""

from dataclasses import asdict

from pydantic import JsonValue

from merging.explanation import Explanation, Group, SourceExplanation
from merging.plan import Plan
from server.errors import InvalidRequestError
from server.presets.document import PresetDocument
from server.presets.ensemble_settings import EnsembleSettings
from server.presets.record import PresetRecord
from server.presets.shelf import Built
from server.presets.twin import ignored_parameters, make_twin


def explain(
    record: PresetRecord,
    plan: Plan,
    built: Built | None = None,
    kv_bytes: int = 0,
) -> dict[str, JsonValue]:
    """What every source and group of tensors resolves to, and what follows from that.

    `built` is the variant, if the plan is one and it is there; `kv_bytes` what its KV cache takes
    at most in layers beyond the base's.
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
        **_parameters_json(explanation),
        **_variant_json(explanation, built, kv_bytes),
        "suspect": record.warnings is not None and record.warnings.is_suspect,
        "warnings": [] if record.warnings is None else [*record.warnings.all],
        "twin": twin(record.document, plan),
    }


def _parameters_json(explanation: Explanation) -> dict[str, JsonValue]:
    """What a blend by coefficients alone has not."""
    if not explanation.parameters and explanation.path != "variant":
        return {}
    return {"parameters": [_group_json(group) for group in explanation.parameters]}


def _variant_json(
    explanation: Explanation, built: Built | None, kv_bytes: int
) -> dict[str, JsonValue]:
    """What only a variant has: the seconds of its last build are None if it is not there."""
    if explanation.path != "variant":
        return {}
    seconds: JsonValue = None if built is None else {**built.seconds_by_phase}
    return {
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


def twin(document: PresetDocument, plan: Plan) -> dict[str, JsonValue]:
    """The ensemble that the merge approximates, and whether their coefficients are the same.

    They are if the method is linear, leaves the base's own scale, and no coefficient depends on
    the layer or the tensor; else the twin has their means. A pool takes the weights as they were
    before the method combined them. `ignored` names the parameters of the recipe that only the
    merge has a use for.
    """
    settings = document.ensemble
    result: dict[str, JsonValue] = {
        "available": False,
        "reason": None,
        "rule": settings.rule,
        "exact": False,
        "members": [],
        "ignored": list(ignored_parameters(document)),
    }
    try:
        made = make_twin(settings, plan, document.base_model)
    except InvalidRequestError as error:
        return {**result, "reason": error.message}
    rows = dict(zip(made.rule.rows, made.rule.coefficients, strict=True))
    members: list[JsonValue] = [
        {"source": name, "coefficient": value, **_member_json(settings, name)}
        for name, value in rows.items()
    ]
    return {**result, "available": True, "exact": made.is_exact, "members": members}


def _member_json(settings: EnsembleSettings, name: str) -> dict[str, JsonValue]:
    """What an ensemble says of a member beside its weight."""
    own = settings.members.get(name)
    if own is None:
        return {}
    return own.model_dump(mode="json", exclude={"weight"}, exclude_defaults=True)


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
    fields["reasons"] = list(source.reasons)
    fields["groups"] = [_group_json(group) for group in source.groups]
    return fields


def _group_json(group: Group) -> dict[str, JsonValue]:
    return {
        "layers": None if group.layers is None else list(group.layers),
        "modules": list(group.modules),
        "coefficient": group.coefficient,
        **({"values": dict(group.values)} if group.values else {}),
    }
