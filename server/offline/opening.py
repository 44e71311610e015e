"""Opens the models of a merge: the base's files mapped, sources read and checked, and the plan."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue

from merging.base import Base
from merging.checkpoint_check import check_base
from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError
from merging.mergekit import from_mergekit
from merging.models import Models
from merging.plan import Plan, plan
from merging.recipe import Recipe
from server.engine.loading import describe_base
from server.engine.model_files import Progress, model_id
from server.offline.locating import Located, locate
from server.offline.recipe_file import RecipeFile
from server.presets.contents import Content, Contents
from server.presets.sources import SourceRegistry

FILE_DTYPES: Final[Mapping[str, str]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float32",
}
"""What a merge of files of these element types is written in, unless asked otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenBase:
    """A base whose weights are mapped, not loaded. `spelling`: as the user named it."""

    spelling: str
    folder: Path
    base: Base
    weights: CheckpointWeights

    def tensor(self, name: str) -> torch.Tensor | None:
        """A tensor by its name in the model: a tied head's name gives the embedding."""
        return Models(self.base, self.weights, {}).base_tensor(name)

    def registry(
        self, *, allow_base_mismatch: bool, contents: Contents | None = None
    ) -> SourceRegistry:
        """What reads sources, and checks them against this base. `contents` may have copies."""
        return SourceRegistry(
            self.base,
            resident=self.weights,
            base_tensor=self.tensor,
            allow_base_mismatch=allow_base_mismatch,
            contents=contents,
        )


@dataclass(frozen=True, slots=True, eq=False)
class OpenMerge:
    """A recipe whose models are open, planned. `spellings`: each source as the user named it, and
    `folders` where it is, by its name in the recipe. `chat_template`: Jinja text that what is
    written gets in place of the base's.
    """

    recipe: Recipe
    plan: Plan
    base: OpenBase
    spellings: Mapping[str, str]
    folders: Mapping[str, Path]
    warnings: tuple[str, ...]
    chat_template: str | None = None


def open_base(spelling: str, folder: Path, dtype: str | None, progress: Progress) -> OpenBase:
    """Map a base and hash it. `dtype` is that of what is merged; None: that of its files.

    Raises EngineError or SourceError if it is no model, or a quantised one.
    """
    check_base(folder)
    described = describe_base(folder)
    what = f"reading {spelling}"
    weights = open_checkpoint(folder, lambda done, total: progress(what, done, total))
    base = replace(
        described,
        name=model_id(spelling),
        digest=weights.digest,
        dtype=dtype or file_dtype(weights),
    )
    return OpenBase(spelling, folder, base, under_model_names(weights, base))


def file_dtype(weights: CheckpointWeights) -> str:
    """The dtype of most of a checkpoint's bytes; float32 if none of them are plain floats."""
    sizes: Counter[str] = Counter()
    for entry in weights.entries.values():
        if entry.dtype in FILE_DTYPES:
            sizes[FILE_DTYPES[entry.dtype]] += entry.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def open_recipe(
    file: RecipeFile,
    *,
    model: str | None,
    given: Mapping[str, str],
    seed: int | None,
    dtype: str | None,
    allow_base_mismatch: bool,
    progress: Progress,
) -> OpenMerge:
    """Find and open all that a recipe in a file names, and plan it.

    `model`, `seed` and `dtype` win over what the file says; `given` maps the names of --source to
    folders or hub ids. Raises MergingError or EngineError with every reason.
    """
    chat_template, located = file.chat_template, locate(file, model, given, progress)
    native = _native(file, located)
    native |= {} if seed is None else {"seed": seed}
    native |= {} if dtype is None else {"dtype": dtype}
    recipe = Recipe.model_validate(native)
    base = open_base(located.base, located.base_folder, recipe.dtype, progress)
    registry = base.registry(allow_base_mismatch=allow_base_mismatch)
    merge = open_merge(recipe, base, located.folders, located.spellings, registry, progress)
    return replace(merge, chat_template=chat_template)


def _native(file: RecipeFile, located: Located) -> dict[str, JsonValue]:
    """The fields of the recipe, with its models by their names in `located`."""
    if file.is_mergekit:
        return dict(from_mergekit(file.mergekit(), located.names.get))
    native = file.native()
    Recipe.model_validate(native)  # what is wrong, by the names that the document has
    if isinstance(source := native.get("tokenizer_source"), str):
        native["tokenizer_source"] = located.names.get(source, source)
    for field in native.keys() & {"base_model", "slices"}:
        native[field] = _renamed(native[field], located.names, field)
    return native


def _renamed(value: JsonValue, names: Mapping[str, str], key: str = "") -> JsonValue:
    """The value, which stands under `key`, with every model in it by its other name."""
    if isinstance(value, dict):
        return {key: _renamed(item, names, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str) and key in ("base_model", "model"):
        return names.get(value, value)
    return value


def open_merge(
    recipe: Recipe,
    base: OpenBase,
    folders: Mapping[str, Path],
    spellings: Mapping[str, str],
    registry: SourceRegistry,
    progress: Progress,
    *,
    digests: Mapping[str, str] | None = None,
) -> OpenMerge:
    """Open the sources of a recipe in their `folders`, by name, and plan it on a base.

    `digests`: what the content of a source must be; then it may also be among what `registry` has
    copies of. Raises PlanError with every reason, sources that cannot be used included.
    """
    sources: dict[str, Content] = {}
    unusable: dict[str, str] = {}
    warnings: list[str] = []
    for name in sorted(recipe.models & {*folders, *(digests or {})}):
        what = f"reading {spellings.get(name, name)}"

        def report(done: int, total: int, what: str = what) -> None:
            progress(what, done, total)

        try:
            wanted = (digests or {}).get(name)
            sources[name], said = _read(registry, folders.get(name), wanted, report)
            warnings += [f"{spellings.get(name, name)}: {warning}" for warning in said]
        except SourceError as error:
            unusable[name] = "; ".join(error.reasons)
    progress("planning", 0, 0)
    planned = plan(recipe, sources, base.base, unusable, weights=base.weights)
    used = {name: folder for name, folder in folders.items() if name in sources}
    return OpenMerge(recipe, planned, base, spellings, used, (*warnings, *planned.warnings))


def _read(
    registry: SourceRegistry,
    folder: Path | None,
    wanted: str | None,
    report: Callable[[int, int], None],
) -> tuple[Content, tuple[str, ...]]:
    """A source of a folder, or else a kept content of the digest that is wanted."""
    problem = None
    if folder is not None:
        try:
            content, warnings = registry.read(folder, report)
        except SourceError as error:
            if wanted is None:
                raise
            problem = error
        else:
            if wanted in (None, content.digest):
                return content, warnings
    assert wanted is not None
    try:
        return registry.content(wanted), ()
    except SourceError as error:
        raise problem or error from error
