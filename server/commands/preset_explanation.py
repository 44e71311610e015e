"""What the server's explain says of a preset, for people: warnings first, then what it becomes."""

from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from merging.wording import shown
from server.commands.preset_view import WIDTH
from server.commands.presets_client import Document
from server.commands.table import table

MAX_GROUPS = 3
"""Groups of layers with a coefficient of their own that are shown of a source."""


def explanation_text(explained: Document) -> str:
    """The summary: warnings, how it is served and why, its sources, its twin, their agreement."""
    parts = [
        _lines("warning", _texts(explained.get("warnings"))),
        _lines("reason", _texts(explained.get("reasons"))),
        table([], list(_facts(explained))),
        _sources(explained),
        table([], list(_relations(explained))),
    ]
    return "\n\n".join(part for part in parts if part)


def _lines(label: str, texts: Sequence[str]) -> str:
    return "\n".join(f"{label}: {text}" for text in texts)


def _facts(explained: Document) -> Iterator[tuple[str, object]]:
    label = f"{explained['preset']}@{explained['revision']}"
    yield "preset", f"{label}, {explained['mode']}, {explained['state']}"
    reason = explained.get("reason")
    yield "path", f"{explained['path']}: {reason}" if reason else explained["path"]
    yield "method", explained["method"]
    for text in _parameters(_maps(explained.get("parameters"))):
        yield "parameters", text
    yield "digest", explained["digest"]
    if (num_bytes := explained.get("num_bytes")) is not None:
        yield "takes", _takes(explained, num_bytes)


def _parameters(groups: Sequence[Document]) -> Iterator[str]:
    """What parameters resolve to, with where they do if that is not everywhere."""
    where: dict[str, list[str]] = {}
    for group in groups:
        if values := _values(group.get("values")):
            where.setdefault(values, []).append(_where(group))
    for values, places in list(where.items())[:MAX_GROUPS]:
        yield values if len(where) == 1 else f"{values} on {'; '.join(places[:MAX_GROUPS])}"
    if len(where) > MAX_GROUPS:
        yield f"and {len(where) - MAX_GROUPS} other sets of values (--json)"


def _takes(explained: Document, num_bytes: JsonValue) -> str:
    assert isinstance(num_bytes, int | float)
    size = f"{num_bytes / 1e6:.3g} MB beside the base"
    if rank := explained.get("max_rank"):
        size += f", rank {rank}"
    variant = explained.get("variant")
    seconds = variant.get("seconds") if isinstance(variant, dict) else None
    return f"{size}, built in {seconds:.1f} s" if isinstance(seconds, int | float) else size


def _sources(explained: Document) -> str:
    """A line for each source, and one more for each group of layers that differs."""
    rows: list[Sequence[object]] = []
    for source in _maps(explained.get("sources")):
        groups = _maps(source.get("groups"))
        differ = len({str(group.get("coefficient")) for group in groups}) > 1
        weight, coefficient = _number(source.get("weight")), _number(source.get("coefficient"))
        where = f"{source['num_modules']} tensors" + (", on average" if differ else "")
        rows.append([source["name"], source["kind"], weight, coefficient, where])
        if not differ:
            continue
        for group in groups[:MAX_GROUPS]:
            rows.append([" ", " ", " ", _number(group.get("coefficient")), _where(group)])
        if len(groups) > MAX_GROUPS:
            rest = f"… and {len(groups) - MAX_GROUPS} groups more (--json)"
            rows.append([" ", " ", " ", " ", rest])
    header = ["SOURCE", "KIND", "WEIGHT", "COEFFICIENT", "ON"]
    return table(header, rows, width=WIDTH) if rows else ""


def _relations(explained: Document) -> Iterator[tuple[str, object]]:
    twin = explained.get("twin")
    if isinstance(twin, dict):
        yield "ensemble twin", _twin(twin)
    interference = explained.get("interference")
    total = interference.get("total") if isinstance(interference, dict) else None
    if not isinstance(total, dict):
        return
    yield "change", f"{_number(total.get('relative_change'))} of the base's norm"
    for source in _maps(total.get("sources")):
        norm, share = _number(source.get("relative_norm")), _number(source.get("contribution"))
        text = f"its delta is {norm} of the base's norm, and {share} of the merged delta"
        yield f"delta of {source['name']}", text
    for pair in _maps(total.get("pairs")):
        cosine, conflict = _number(pair.get("cosine")), _number(pair.get("sign_conflict"))
        yield f"{pair['first']} and {pair['second']}", f"cosine {cosine}, sign conflict {conflict}"


def _twin(twin: dict[str, JsonValue]) -> str:
    if not twin.get("available"):
        return f"none: {twin.get('reason')}"
    members = ", ".join(
        f"{member['source']} {_number(member['coefficient'])}"
        for member in _maps(twin.get("members"))
    )
    exact = "its coefficients are the merge's" if twin.get("exact") else "approximate"
    ignored = ", ".join(_texts(twin.get("ignored")))
    return f"{twin['rule']} of {members}; {exact}" + (f"; without {ignored}" if ignored else "")


def _where(group: Document) -> str:
    layers, names = group.get("layers"), _texts(group.get("modules"))
    modules = shown(names, limit=3)
    if not isinstance(layers, list):
        return modules
    first, last = layers
    return f"layer {first}: {modules}" if first == last else f"layers {first}-{last}: {modules}"


def _values(values: JsonValue) -> str:
    fields = values if isinstance(values, dict) else {}
    return ", ".join(f"{name} {_number(value)}" for name, value in fields.items())


def _number(value: JsonValue) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


def _texts(value: JsonValue) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _maps(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
