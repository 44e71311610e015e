"""Models of a recipe are found by name, path or hub id, and get one name each."""

from pathlib import Path

import pytest

from merging.errors import PlanError
from server.engine.errors import ModelLoadError
from server.offline.locating import Located, locate
from server.offline.recipe_file import RecipeFile


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose folders are what the hub gives."""

    def folder(model: str, progress: object) -> Path:
        for path in (Path(model), tmp_path / model):
            if path.is_dir():
                return path
        raise ModelLoadError(f"{model} is not there")

    monkeypatch.setattr("server.offline.locating.model_folder", folder)
    for name in ("org/base", "org/a", "other/a", "org/.b c"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def located(model: str | None = None, *sources: str, **content: object) -> Located:
    given = dict(source.split("=") for source in sources)
    file = RecipeFile(Path("recipe.yaml"), content)  # type: ignore[arg-type]
    return locate(file, model, given, lambda what, done, total: None)


def models(*names: str) -> dict[str, object]:
    return {"merge_method": "linear", "models": [{"model": name} for name in names]}


def test_names_are_made_of_paths_and_hub_ids(hub: Path) -> None:
    """Valid, different, and told from the base."""
    found = located(**models("org/a", "other/a", "org/.b c", "org/base"), base_model="org/base")
    assert found.base == "org/base"
    assert found.base_folder == hub / "org/base"
    assert found.names == {
        **{"base": "base", "org/base": "base"},
        **{"org/a": "a", "other/a": "a-2", "org/.b c": "b-c"},
    }
    assert found.folders == {"a": hub / "org/a", "a-2": hub / "other/a", "b-c": hub / "org/.b c"}
    assert found.spellings["a-2"] == "other/a"


def test_two_spellings_of_one_folder_are_one_model(hub: Path) -> None:
    """Else a model would count twice."""
    found = located("org/base", **models("org/a", str(hub / "org/a"), str(hub / "org/base")))
    assert found.names["org/a"] == found.names[str(hub / "org/a")] == "a"
    assert found.names[str(hub / "org/base")] == "base"


def test_names_of_sources_win(hub: Path) -> None:
    """A name of --source is what the recipe means by it, and what the model is called."""
    found = located("org/base", "org/a=other/a", "x=org/a", **models("org/a", "x"))
    assert found.folders == {"org/a": hub / "other/a", "x": hub / "org/a"}


def test_the_base(hub: Path) -> None:
    """--model, else base_model, else the first model; an adapter is none."""
    assert located("org/base", **models("org/a")).base == "org/base"
    assert located(**models("other/a", "org/a")).base == "other/a"
    with pytest.raises(PlanError, match="--model"):
        located(**models("org/a"), base_model="base")
    with pytest.raises(PlanError, match="--model"):
        located(method="linear", sources={"org/a": {}})
    (hub / "org/a" / "adapter_config.json").write_text("{}")
    with pytest.raises(PlanError, match=r"adapter.*--model"):
        located(**models("org/a", "other/a"))


def test_every_model_that_is_not_found(hub: Path) -> None:
    """All of them at once."""
    with pytest.raises(PlanError) as caught:
        located("org/base", **models("no", "nor", "org/base+org/a", "org/a@main"))
    assert len(caught.value.reasons) == 4
    assert "merge the two first" in caught.value.reasons[2]
    assert "revision" in caught.value.reasons[3]
