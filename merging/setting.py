"""Settings, as mergekit has them: one value, a gradient over the layers, or values by filter.

The semantics are those of mergekit 0.1.5 (`evaluate_setting` in its config.py). In JSON a setting
is a scalar, a list of scalars (a gradient), `{"value": …, "filter": …}`, or a list of those.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from merging.errors import RecipeError

Scalar = bool | float | str
Kind = Literal["number", "boolean", "integer", "choice"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A gradient, for the tensors whose name contains `filter`; for all of them if it is None.

    `values` are spread evenly from the first layer to the last. A single one is a plain scalar.
    """

    values: tuple[Scalar, ...]
    filter: str | None = None

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter in tensor_name

    def at(self, t: float) -> Scalar:
        """The value at depth `t` in [0, 1]: between two numbers linear, of all else the lower."""
        if len(self.values) == 1:
            return self.values[0]
        position = t * (len(self.values) - 1)
        low = int(position)
        high, fraction = min(low + 1, len(self.values) - 1), position - low
        first, second = self.values[low], self.values[high]
        if low == high or not (isinstance(first, float) and isinstance(second, float)):
            return first
        return (1 - fraction) * first + fraction * second


Setting = tuple[Entry, ...]
"""Entries in the order of precedence: the first one that matches a tensor counts."""


def resolve(setting: Setting, tensor_name: str, t: float) -> Scalar | None:
    """The setting's value for one tensor, or None if none of its filters matches.

    `tensor_name` is the full name, `model.layers.0.mlp.up_proj.weight`; `t` its `Section.depth`.
    """
    for entry in setting:
        if entry.matches(tensor_name):
            return entry.at(t)
    return None


def chain(settings: Iterable[Setting]) -> Setting:
    """One setting that resolves as the first of `settings` that has a value for the tensor."""
    entries: list[Entry] = []
    for entry in (entry for setting in settings for entry in setting):
        entries.append(entry)
        if entry.filter is None:  # nothing after it can be reached
            break
    return tuple(entries)


def setting_json(setting: Setting) -> JsonValue:
    """A setting as plain JSON, in the shortest of its forms; `parse_setting` reads it back."""
    if len(setting) == 1 and setting[0].filter is None:
        return _values_json(setting[0].values)
    entries: list[JsonValue] = []
    for entry in setting:
        filtered: dict[str, JsonValue] = {} if entry.filter is None else {"filter": entry.filter}
        entries.append(filtered | {"value": _values_json(entry.values)})
    return entries


def _values_json(values: tuple[Scalar, ...]) -> JsonValue:
    return values[0] if len(values) == 1 else list(values)


def parse_setting(value: object, path: str, kind: Kind, choices: tuple[str, ...] = ()) -> Setting:
    """Read a setting from plain JSON. `path` says where it stands, `kind` what its scalars are,
    and `choices` those of kind "choice".

    Raises RecipeError with a reason, led by its path, for every scalar or entry that is wrong.
    """
    reasons: list[str] = []
    setting = tuple(_entries(value, path, kind, reasons))
    if kind == "choice":
        reasons += [
            f"{path}: must be one of {', '.join(choices)}, got {scalar!r}"
            for entry in setting
            for scalar in entry.values
            if scalar not in choices
        ]
    if reasons:
        raise RecipeError(reasons)
    return setting


def _entries(value: object, path: str, kind: Kind, reasons: list[str]) -> Iterable[Entry]:
    if isinstance(value, Mapping):
        yield _entry(value, path, kind, reasons)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            if isinstance(item, Mapping):
                yield _entry(item, f"{path}[{index}]", kind, reasons)
            else:
                reasons.append(
                    f"{path}[{index}]: a list of {{filter, value}} cannot also hold {item!r}; "
                    f'write {{"value": {item!r}}}'
                )
    else:
        yield Entry(_gradient(value, path, kind, reasons))


def _entry(item: Mapping[object, object], path: str, kind: Kind, reasons: list[str]) -> Entry:
    for key in item:
        if key not in ("filter", "value"):
            reasons.append(f"{path}.{key}: unknown key; a setting has 'filter' and 'value'")
    pattern = item.get("filter")
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        reasons.append(f"{path}.filter: must be part of a tensor's name, got {pattern!r}")
    if "value" not in item:
        reasons.append(f"{path}.value: is missing")
        return Entry(())
    values = _gradient(item["value"], f"{path}.value", kind, reasons)
    return Entry(values, pattern if isinstance(pattern, str) and pattern != "*" else None)


def _gradient(value: object, path: str, kind: Kind, reasons: list[str]) -> tuple[Scalar, ...]:
    if not isinstance(value, list | tuple):
        return tuple(_scalar(value, path, kind, reasons))
    if not value:
        reasons.append(f"{path}: the list is empty")
    items = enumerate(value)
    return tuple(s for i, item in items for s in _scalar(item, f"{path}[{i}]", kind, reasons))


def _scalar(value: object, path: str, kind: Kind, reasons: list[str]) -> Iterable[Scalar]:
    if kind == "boolean":
        if isinstance(value, bool):
            yield value
        else:
            reasons.append(f"{path}: must be true or false, got {value!r}")
    elif kind == "choice":
        if isinstance(value, str):
            yield value
        else:
            reasons.append(f"{path}: must be text, got {value!r}")
    elif kind == "integer":
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        else:
            reasons.append(f"{path}: must be a whole number, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        reasons.append(f"{path}: must be a number, got {value!r}{_hint(value)}")
    elif not is_finite(value):
        reasons.append(f"{path}: must be finite, got {value!r}")
    else:
        yield float(value) + 0.0  # -0.0 and 0.0 are the same weight


def is_finite(value: int | float) -> bool:
    """Whether a number of JSON is a finite float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _hint(value: object) -> str:
    try:
        float(str(value))
    except ValueError:
        return ""
    return " (text: YAML reads 1e-5 as text, and 1.0e-5 as a number)" if value == str(value) else ""
