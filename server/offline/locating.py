"""Where the models of a recipe are: names given with --source, paths, or hub ids."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.errors import PlanError
from merging.mergekit_reference import merge_first
from server.engine.errors import EngineError
from server.engine.model_files import Progress, model_folder
from server.offline.recipe_file import RecipeFile
from server.presets.contents import is_adapter
from server.presets.names import BASE, NAME_PATTERN


@dataclass(frozen=True, slots=True)
class Located:
    """The models of a recipe in folders.

    `base`: the resident base, as it was spelled, and its folder. `names`: what each model, as the
    recipe spells it, is called in the native document. `folders` and `spellings` are by that name,
    without the base.
    """

    base: str
    base_folder: Path
    names: Mapping[str, str]
    folders: Mapping[str, Path]
    spellings: Mapping[str, str]


def locate(
    file: RecipeFile, model: str | None, given: Mapping[str, str], progress: Progress
) -> Located:
    """Find every model of a recipe, downloading those of the hub.

    The base is `model`, else the recipe's base_model, else its first model. `given` maps the names
    of --source to folders or hub ids. Raises PlanError with a reason for each model that is not
    found.
    """
    finder = _Finder(given, progress)
    base = model or _base_of(file, given)
    finder.find(base)
    for text in (file.base_model, *file.models, *file.slice_models):
        if text not in (None, BASE):
            finder.find(str(text))
    if finder.reasons:
        raise PlanError(finder.reasons)
    base_folder = finder.folders[base]
    if is_adapter(base_folder):
        raise PlanError(f"{base} is an adapter, and no base: name the model with --model")
    return _named(file, base, base_folder, finder, given)


def _base_of(file: RecipeFile, given: Mapping[str, str]) -> str:
    """What a recipe takes for its base where no --model says so."""
    if file.base_model == BASE and BASE not in given:
        raise PlanError(f"{file.path} is relative to 'base': name that model with --model")
    named = file.base_model or next(iter(file.models), None)
    if named is None or named == BASE:
        raise PlanError(f"{file.path} names no model: give its base with --model")
    return named


class _Finder:
    """Finds models one by one, and collects the reasons against them."""

    def __init__(self, given: Mapping[str, str], progress: Progress) -> None:
        self.folders: dict[str, Path] = {}
        self.reasons: list[str] = []
        self._given = given
        self._progress = progress

    def find(self, text: str) -> None:
        """Find a model by its spelling."""
        if text in self.folders:
            return
        location = self._given.get(text, text)
        if "+" in location and not Path(location).expanduser().exists():
            self.reasons.append(merge_first(text))
            return
        if "@" in location and not Path(location).expanduser().exists():
            self.reasons.append(
                f"{text}: a revision of a hub model is not taken; download it, and name its folder"
            )
            return
        try:
            self.folders[text] = model_folder(location, self._progress).resolve()
        except EngineError as error:
            self.reasons.append(str(error))


def _named(
    file: RecipeFile, base: str, base_folder: Path, finder: _Finder, given: Mapping[str, str]
) -> Located:
    """Call each folder by one name: that of --source, else one made of its own."""
    by_folder: dict[Path, str] = {base_folder: BASE} if file.is_mergekit else {}
    names = {BASE: BASE, base: BASE}
    spellings: dict[str, str] = {}
    for text, folder in finder.folders.items():
        if not file.is_mergekit and text in file.models:
            name = text  # a native document's own
        elif text in given and folder not in by_folder:
            name = text
        else:
            name = by_folder.get(folder) or _new_name(text, {BASE, *by_folder.values(), *given})
        if text == base and text not in file.models:
            name = BASE
        by_folder.setdefault(folder, name)
        names[text] = name
        if name != BASE:
            spellings.setdefault(name, text)
    folders = {name: finder.folders[text] for name, text in spellings.items()}
    return Located(base, base_folder, names, folders, spellings)


def _new_name(text: str, taken: set[str]) -> str:
    """A source name like the last part of a path or hub id."""
    last = text.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:60] or "model"
    candidates = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(c for c in candidates if c not in taken and re.fullmatch(NAME_PATTERN, c))
