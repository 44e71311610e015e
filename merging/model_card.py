"""README.md of what was merged: how it was made, in a form that the hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a card tells. `digest` is the recipe's, with the content of all sources in it.

    `models` maps each model, as the recipe names it, to the digest of its content; the base comes
    first. `recipe` is in mergekit's form. `library` is "transformers", or "peft" for an adapter.
    `notes`: sentences on what the reader must know.
    """

    title: str
    digest: str
    method: str
    seed: int
    dtype: str
    models: Mapping[str, str]
    recipe: Mapping[str, JsonValue]
    library: str = "transformers"
    notes: Sequence[str] = field(default=())

    def text(self) -> str:
        """The card as Markdown, with the YAML that the hub reads before it."""
        names = list(self.models)
        front = {
            "base_model": names[:1] if self.library == "peft" else names,
            "library_name": self.library,
            "tags": ["merge", "mergekit"],
        }
        rows = "\n".join(f"| {_cell(name)} | `{self.models[name]}` |" for name in names)
        notes = "".join(f"- {_line(note)}\n" for note in self.notes)
        return (
            f"---\n{_yaml(front)}---\n# {_line(self.title)}\n\n"
            f"A merge of language models by the method `{self.method}`, made with mergeserve.\n\n"
            f"| model | content |\n|---|---|\n{rows}\n\n"
            f"- digest: `{self.digest}`\n- seed: {self.seed}\n- dtype: {self.dtype}\n{notes}\n"
            f"## Recipe\n\n```yaml\n{_yaml(self.recipe)}```\n"
        )


def _yaml(value: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _line(text: str) -> str:
    """One line, whatever the name of a folder holds."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
