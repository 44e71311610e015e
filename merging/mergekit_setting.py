"""Settings as mergekit's YAML has them: scalars as its types read them, levels folded in one."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from merging.setting import Kind

TRUE, FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")
"""What mergekit reads as booleans, in any case."""


def plain(value: object, kind: Kind | None) -> JsonValue:
    """A setting with its scalars as plain numbers and booleans, as mergekit's types read them: YAML
    has 1e-5 as text. What cannot be read, and settings of an unknown kind, are left as they are.
    """
    if isinstance(value, Mapping):
        return {
            str(key): plain(item, kind) if key == "value" else item for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, kind) for item in value]
    return _scalar(value, kind)  # type: ignore[return-value]


def _scalar(value: object, kind: Kind | None) -> object:
    if kind == "boolean":
        text = str(int(value) if isinstance(value, float) and value in (0, 1) else value).lower()
        return True if text in TRUE else False if text in FALSE else value
    if kind not in ("number", "integer") or not isinstance(value, str | bool | float):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if kind == "integer" and number.is_integer() else number


def fold(levels: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
    """One level of settings that resolves as several do, the first of them taking precedence."""
    folded: dict[str, JsonValue] = {}
    for level in levels:
        for name, setting in level.items():
            folded[name] = _chain(folded[name], setting) if name in folded else setting
    return folded


def _chain(first: JsonValue, second: JsonValue) -> JsonValue:
    entries: list[JsonValue] = []
    for entry in [*_entries(first), *_entries(second)]:
        entries.append(entry)
        if entry.get("filter") in (None, "*"):  # nothing after it can be reached
            break
    return first if len(entries) <= len(_entries(first)) else entries


def _entries(setting: JsonValue) -> list[dict[str, JsonValue]]:
    if isinstance(setting, dict):
        return [setting]
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        return [item for item in setting if isinstance(item, dict)]
    return [{"value": setting}]
