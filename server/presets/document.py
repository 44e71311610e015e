"""The preset document: the fields of a preset that its user owns."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from merging.digest import canonical_json
from merging.recipe import BASE, METHOD, Recipe
from merging.setting import is_finite
from server.errors import InvalidRequestError
from server.presets.ensemble_settings import EnsembleSettings, MemberSettings
from server.presets.names import NAME_PATTERN
from server.presets.policy import OverrideLevel
from server.presets.sampling_defaults import SamplingDefaults

SERVER_FIELDS = frozenset(
    {
        "revision",
        "digest",
        "state",
        "reasons",
        "suspect",
        "warnings",
        "path",
        "author",
        "message",
        "created_at",
        "updated_at",
    }
)
"""What the server adds to a document. A body may carry it back, and it is dropped."""

RECIPE_FIELDS = {
    *("method", "base_model", "sources", "parameters", "slices", "dtype", "seed"),
    "tokenizer_source",
}


class PresetDocument(BaseModel):
    """A named recipe with a mode and sampling defaults.

    What stands in `sources` and `parameters` is the recipe's to check: see `recipe`. `ignored`:
    what the mergekit configuration that it was made of said to no effect.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
    description: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    mode: Literal["merge", "ensemble"] = "merge"
    method: str = METHOD
    base_model: str | None = BASE
    sources: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    slices: JsonValue = None
    dtype: str | None = None
    seed: int = 0
    tokenizer_source: str | None = None
    ensemble: EnsembleSettings = EnsembleSettings()
    overrides: OverrideLevel | None = None
    defaults: SamplingDefaults = SamplingDefaults()
    conversation: str | None = None
    pinned: bool = False
    ignored: list[str] = Field(default_factory=list)

    @field_validator("conversation")
    @classmethod
    def _check_conversation(cls, name: str | None, info: ValidationInfo) -> str | None:
        """Whose chat template and stop tokens count: those of the base, or of a source in use."""
        known = {BASE, *info.data.get("sources", ()), info.data.get("base_model")} - {None}
        if name is not None and name not in known:
            raise PydanticCustomError(
                "unknown_conversation",
                "is whose chat template and stop tokens count, one of {known}",
                {"known": ", ".join(sorted(known))},
            )
        return name

    def recipe(self) -> Recipe:
        """What decides the weights. Raises RecipeError with every reason."""
        return Recipe.model_validate(self.model_dump(include=RECIPE_FIELDS))

    def to_json(self) -> dict[str, JsonValue]:
        """Plain JSON values; sampling defaults, a tokenizer_source, `ignored` and parts of the
        ensemble are left out where they are not set, and so is the conversation.
        """
        document: dict[str, JsonValue] = self.model_dump(mode="json")
        if self.tokenizer_source is None:
            del document["tokenizer_source"]
        if self.conversation is None:
            del document["conversation"]
        if not self.ignored:
            del document["ignored"]
        document["ensemble"] = self.ensemble.to_json()
        document["defaults"] = self.defaults.model_dump(mode="json", exclude_none=True)
        return document

    def content(self) -> str:
        """The same text for documents that mean the same: 1 and 1.0 are one number."""
        return canonical_json(_plain_numbers(self.to_json()))


def parse_document(data: object, *, name: str | None = None) -> PresetDocument:
    """Read a document that a user sent; fields that the server owns are dropped.

    With `name` (from the URL) the body may leave its name out, or repeat it.
    """
    if not isinstance(data, dict):
        raise InvalidRequestError(
            'a preset is a JSON object such as {"name": "tutor", "sources": {"math": {"weight": '
            f"0.5}}}}}}, got {type(data).__name__}"
        )
    fields = {key: value for key, value in data.items() if key not in SERVER_FIELDS}
    if name is not None:
        check_same_name(name, fields.setdefault("name", name))
    fields = with_weights(fields)
    bad = list(_bad_values(fields))
    try:
        document = PresetDocument.model_validate(fields)
    except ValidationError as error:
        raise _invalid([*bad, *_mistakes(error)]) from error
    if bad:
        raise _invalid(bad)
    return document


def with_weights(fields: dict[str, object]) -> dict[str, object]:
    """The fields of a document or of a patch, with a source's bare number, or list, as its weight:
    `{"math": 0.5}` is short for `{"math": {"weight": 0.5}}`.
    """
    sources = fields.get("sources")
    if not isinstance(sources, dict):
        return fields
    return {**fields, "sources": {name: _settings(value) for name, value in sources.items()}}


def _settings(value: object) -> object:
    is_weight = isinstance(value, int | float | list) and not isinstance(value, bool)
    return {"weight": value} if is_weight else value


def check_same_name(name: str, other: object) -> None:
    """Refuse a document that names another preset than the one that is edited."""
    if other != name:
        raise InvalidRequestError(
            f"name: a preset cannot be renamed from {name!r} to {other!r}; leave it out, or "
            "create another preset",
            param="name",
        )


def _invalid(mistakes: list[tuple[str, str]]) -> InvalidRequestError:
    """One error of (field, what is wrong) pairs."""
    message = "; ".join(f"{field}: {what}" for field, what in mistakes)
    return InvalidRequestError(_unicode(message), param=_unicode(mistakes[0][0]))


def _mistakes(error: ValidationError) -> Iterator[tuple[str, str]]:
    for detail in error.errors(include_url=False):
        if detail["type"] in ("finite_number", "string_unicode"):  # a bad value, already named
            continue
        *parents, last = detail["loc"]
        what = detail["msg"]
        if detail["type"] == "extra_forbidden":
            what = f"unknown field; known are {', '.join(_known_fields(parents))}"
        elif detail["type"] == "missing":
            what = "is missing"
        elif not isinstance(detail["input"], dict | list):
            what += f", got {_excerpt(detail['input'])}"
        yield ".".join(str(part) for part in (*parents, last)), what


def _known_fields(parents: list[str | int]) -> list[str]:
    models: dict[tuple[str | int, ...], type[BaseModel]] = {
        (): PresetDocument,
        ("defaults",): SamplingDefaults,
        ("ensemble",): EnsembleSettings,
        ("ensemble", "members"): MemberSettings,
    }
    return list(models[tuple(parents[:2])].model_fields)


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _bad_values(data: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Values that JSON parsers let through and that no field may hold, at any depth."""
    pending: list[tuple[str, object]] = list(data.items())
    if any(_unicode(field) != field for field in data):
        yield "fields", "are not valid Unicode"
    while pending:
        field, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{field}.{key}", item) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend((f"{field}[{index}]", item) for index, item in enumerate(value))
        if isinstance(value, int | float) and not is_finite(value):
            yield field, f"must be finite, got {_excerpt(value)}"
        texts = (value,) if isinstance(value, str) else value if isinstance(value, dict) else ()
        if any(isinstance(text, str) and _unicode(text) != text for text in texts):
            yield field, "is not valid Unicode"


def _unicode(text: str) -> str:
    """The text, with halves of surrogate pairs replaced."""
    return text.encode(errors="replace").decode()


def _plain_numbers(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
