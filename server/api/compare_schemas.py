"""What `POST /v1/compare` takes."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from ensemble.errors import ScorerError
from ensemble.scorers import Scorer, find_scorer
from merging.digest import json_digest
from server.api.fields import Prompts, refuse
from server.api.schemas import Body, Extension, Messages, SamplingBody
from server.errors import InvalidRequestError
from server.presets.served import Overrides

MAX_PROMPTS = 10_000
MAX_CANDIDATES = 32
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class CandidateBody(Body):
    """One candidate: a model string, and what is changed of it. `name` is what results call it."""

    model: ModelName
    mergeserve: Extension | None = None
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None


def _as_object(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Candidates = Annotated[
    list[Annotated[CandidateBody, BeforeValidator(_as_object)]],
    Field(min_length=1, max_length=MAX_CANDIDATES),
]


class CompareBody(SamplingBody):
    """`POST /v1/compare`. None: not given.

    `model` names the preset whose base, sources, merge, ensemble, route and previous revision are
    compared where there are no `candidates`. `reference` is an index into the candidates, or one's
    name. `scorer` is a name, or names by tag. `prompts_file` is what reports call the prompts.
    """

    model: ModelName | None = None
    prompts: Prompts | None = None
    messages: Annotated[list[Messages], Field(min_length=1)] | None = None
    references: list[str | None] | None = None
    tags: list[str | None] | None = None
    candidates: Candidates | None = None
    reference: Annotated[int, Field(ge=0)] | str | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 64
    margin: Annotated[float, Field(gt=0)] | None = None
    level: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    scorer: str | dict[str, str] | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    stream: bool | None = None
    positions: bool = True
    html: bool = False
    prompts_file: Annotated[str, Field(max_length=256)] | None = None
    user: str | None = None

    @property
    def num_prompts(self) -> int:
        """Prompts, in whichever form they came."""
        return len(self.prompts or self.messages or ())

    def scorer_of(self, tag: str | None) -> Scorer | None:
        """The scorer for prompts of a tag. InvalidRequestError if there is no such scorer."""
        name = self.scorer.get(tag or "") if isinstance(self.scorer, dict) else self.scorer
        if name is None:
            return None
        try:
            return find_scorer(name)
        except ScorerError as error:
            raise InvalidRequestError(f"scorer: {error}", param="scorer") from None

    @property
    def prompts_digest(self) -> str:
        """The digest of the prompts and all that belongs to them."""
        asked = {"prompts", "messages", "references", "tags", "scorer"}
        return json_digest(self.model_dump(mode="json", include=asked))

    def overrides_of(self, candidate: int) -> Overrides:
        """What the request itself changes of a candidate."""
        extension = None if self.candidates is None else self.candidates[candidate].mergeserve
        return Overrides() if extension is None else extension.overrides()

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if (self.prompts is None) == (self.messages is None):
            refuse("prompts", "send either prompts or messages")
        if self.num_prompts > MAX_PROMPTS:
            refuse(
                "prompts",
                f"has {self.num_prompts} items, of {MAX_PROMPTS} allowed: send them in parts",
            )
        if self.model is None and self.candidates is None:
            refuse("candidates", "name candidates, or a preset as model to compare with its parts")
        if self.model is not None and self.candidates is not None:
            refuse("model", "says whose parts are compared where no candidates are named: send one")
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        field = "prompts" if self.messages is None else "messages"
        for name in ("references", "tags"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_prompts:
                refuse(
                    name,
                    f"has {len(values)} items and {field} {self.num_prompts}: send one for each, "
                    "null where there is none",
                )
        if self.references is not None and "" in self.references:
            refuse(f"references[{self.references.index('')}]", "is empty: send null for none")
        return self

    @model_validator(mode="after")
    def _check_scorer(self) -> Self:
        if self.scorer is not None and not any(r is not None for r in self.references or ()):
            refuse("scorer", "needs references to hold answers against")
        unknown = [] if not isinstance(self.scorer, dict) else self.scorer.keys() - {*self._tags()}
        if unknown:
            refuse("scorer", f"names the tag {sorted(unknown)[0]!r}, which no prompt has")
        return self

    def _tags(self) -> list[str]:
        return [tag for tag in self.tags or () if tag is not None]
