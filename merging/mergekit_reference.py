"""References to models in mergekit's configurations: texts, and mappings that mean the same."""

from collections.abc import Iterator, Mapping
from typing import Final

REFERENCE_KEYS: Final = ("model", "lora", "override_architecture", "path", "revision")


def reference_text(value: object) -> str | None:
    """How a model is spelled: text, or mergekit's mapping as the text that means the same,
    `path@revision+lora`. None for what is neither.
    """
    if isinstance(value, str):
        return value or None
    if not isinstance(value, Mapping):
        return None
    if "model" in value:
        inner, lora = reference_text(value["model"]), reference_text(value.get("lora"))
        return inner if inner is None or lora is None else f"{inner}+{lora}"
    path, revision = value.get("path"), value.get("revision")
    if not isinstance(path, str):
        return None
    return path if revision is None else f"{path}@{revision}"


def mappings(value: object, path: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The mappings in a reference, each with where it stands."""
    if not isinstance(value, Mapping):
        return
    yield path, value
    for key in ("model", "lora"):
        yield from mappings(value.get(key), f"{path}.{key}")


def merge_first(text: str) -> str:
    """Why a model with an adapter on it, `model+lora`, is no source, and the way out."""
    model, _, lora = text.partition("+")
    return (
        f"{text!r} is an adapter on a model, which mergekit merges first. Where {model!r} is the "
        f"base of the merge, name {lora!r} alone: its delta is to the base. Else merge the two "
        "first, and name the folder of the result: `mergeserve merge` takes a file with "
        f"merge_method: task_arithmetic, base_model: {model}, "
        f"models: [{{model: {lora}, parameters: {{weight: 1}}}}]"
    )
