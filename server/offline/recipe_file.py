"""A recipe in a file: mergekit's YAML, or the native document."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue

from merging.errors import RecipeError
from merging.mergekit import EXPERTS
from merging.mergekit_reference import reference_text
from merging.regular_file import MAX_YAML, read_file
from server.presets.document import RECIPE_FIELDS, SERVER_FIELDS, PresetDocument, with_weights

MERGEKIT_METHOD = "merge_method"
"""The key that tells mergekit's form from the native one, where it is `method`."""

CHAT_TEMPLATE = "chat_template"
"""A merge that is served has its base's; one that is written may have another."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """What a file holds. `content` has plain values, checked no further."""

    path: Path
    content: Mapping[str, JsonValue]

    @property
    def is_mergekit(self) -> bool:
        return MERGEKIT_METHOD in self.content

    @property
    def base_model(self) -> str | None:
        """The model that deltas are relative to, as the file spells it; None if it names none."""
        default = None if self.is_mergekit else "base"
        return reference_text(self.content.get("base_model", default))

    @property
    def models(self) -> list[str]:
        """All other models, as the file spells them, in its order."""
        sources = self.content.get("sources")
        if not self.is_mergekit and isinstance(sources, dict):
            return list(sources)
        return list(dict.fromkeys(_models(dict(self.content))))

    @property
    def slice_models(self) -> list[str]:
        """The models that the slices of a native document name: its sources, and their bases."""
        return [] if self.is_mergekit else list(dict.fromkeys(_models(self.content.get("slices"))))

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that the result gets; None to keep the base's."""
        template = self.content.get(CHAT_TEMPLATE) if self.is_mergekit else None
        return template if isinstance(template, str) and "{" in template else None

    @property
    def ignored(self) -> list[str]:
        """What it says of the chat template to no effect."""
        template = self.content.get(CHAT_TEMPLATE) if self.is_mergekit else None
        if template is None or self.chat_template is not None:
            return []
        why = f"{template!r} is no Jinja text: write the template out to give the result another"
        if template == "auto":
            why = "'auto' has mergekit choose among the models' templates"
        return [f"{CHAT_TEMPLATE}: the result keeps the base's; {why}"]

    def mergekit(self) -> dict[str, JsonValue]:
        """mergekit's configuration, of what decides the weights."""
        assert self.is_mergekit
        return {key: value for key, value in self.content.items() if key != CHAT_TEMPLATE}

    def native(self) -> dict[str, JsonValue]:
        """The fields of a native document that decide the weights.

        A preset's other fields may be there. Raises RecipeError for what is neither.
        """
        assert not self.is_mergekit
        known = RECIPE_FIELDS | PresetDocument.model_fields.keys() | SERVER_FIELDS
        if unknown := [key for key in self.content if key not in known]:
            raise RecipeError([f"{key}: is not a field of a recipe" for key in unknown])
        fields = with_weights({k: v for k, v in self.content.items() if k in RECIPE_FIELDS})
        return cast(dict[str, JsonValue], fields)


def read_recipe_file(path: Path) -> RecipeFile:
    """Read YAML (or JSON, which is YAML). Raises RecipeError."""
    try:
        documents = list(yaml.safe_load_all(read_file(path, MAX_YAML).decode()))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if len(documents) != 1:
        raise RecipeError(
            f"{path} holds {len(documents)} YAML documents, and one recipe is needed: write each "
            "stage to a file of its own, merge them in their order, and name the folders that "
            "earlier stages wrote"
        )
    (content,) = documents
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{path} is not a recipe: expected a map with merge_method or method")
    if "experts" in content:
        raise RecipeError(f"{path}: {EXPERTS}")
    if MERGEKIT_METHOD not in content and "method" not in content:
        raise RecipeError(
            f"{path} has neither merge_method, as mergekit's recipes, nor method, as a preset"
        )
    return RecipeFile(path, content)


def _models(value: object) -> Iterator[str]:
    """Every model below a mergekit configuration, in its order."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("model", "base_model"):
                if (text := reference_text(item)) is not None:
                    yield text
            elif key not in ("tokenizer", "parameters"):
                yield from _models(item)
    elif isinstance(value, list):
        for item in value:
            yield from _models(item)
