"""FIFOs, sparse files, other formats and adapters in place of what is read: refused at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.errors import SourceError
from server.__main__ import main
from server.app import read_presets
from server.engine.errors import ModelLoadError, UnsupportedModelError
from server.engine.loading import describe_base, load_engine
from server.engine.options import EngineOptions
from server.engine.probe import probe
from server.errors import InvalidRequestError
from server.presets.sources import SourceRegistry
from server.settings import Settings, SettingsError
from tests.models import save_tiny_model, tiny_model
from tests.server.presets.forge import VariantWorld
from tests.server.presets.tiny import tiny_base, write_adapter


def fill_with_holes(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


PUT: dict[str, Callable[[Path], None]] = {"FIFO": os.mkfifo, "holes": fill_with_holes}


def replaced(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    PUT[kind](path)
    return path


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_in_place_of_an_adapter_s_file(tmp_path: Path, kind: str, name: str) -> None:
    """The file is named, by the registry and by `inspect`."""
    folder = write_adapter(tmp_path / "math", 0)
    replaced(folder / name, kind)
    with pytest.raises(SourceError, match=f"{name} "):
        SourceRegistry(tiny_base()).read(folder)


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
)
def test_in_place_of_a_checkpoint_s_file(tmp_path: Path, kind: str, name: str) -> None:
    """The file is named, also where another one would have been taken for it."""
    world = VariantWorld(tmp_path)
    folder = world.checkpoint("ft", 1)
    replaced(folder / name, kind)
    with pytest.raises(SourceError, match=f"{name} "):
        SourceRegistry(tiny_base(), resident=world.resident).read(folder)


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_in_place_of_a_model_s_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    """transformers would wait for it; the server and `inspect` never hand the folder over."""
    folder = save_tiny_model(tmp_path / "tiny")
    replaced(folder / name, kind)
    with pytest.raises(ModelLoadError, match=f"{name} cannot be read: it "):
        load_engine(folder, EngineOptions(device="cpu", dtype="float32"))
    assert main(["inspect", str(folder)]) == 1
    assert f"{name} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("kind", PUT)
def test_in_place_of_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Recipes, presets and the file of --config."""
    path = replaced(tmp_path / "x.yaml", kind)
    assert main(["merge", str(path), str(tmp_path / "out")]) == 1
    assert f"{path} cannot be read: it " in capsys.readouterr().err
    with pytest.raises(InvalidRequestError, match=r"x\.yaml cannot be read: it "):
        read_presets(path)
    with pytest.raises(SettingsError, match=r"x\.yaml: it "):
        Settings(config=path)


def test_an_adapter_as_a_base(tmp_path: Path) -> None:
    """What to give instead, with the base that it records."""
    folder = write_adapter(tmp_path / "math", 0)
    with pytest.raises(ModelLoadError) as caught:
        describe_base(folder)
    said = str(caught.value)
    assert f"{folder} is an adapter, and not a model" in said
    assert f"--source NAME={folder}" in said
    assert "it was trained on 'tiny'" in said


def test_gguf_as_a_base(tmp_path: Path) -> None:
    """How to convert it, by the file or by its folder."""
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelLoadError, match="GgufConfig"):
        describe_base(tmp_path / "m.gguf")
    with pytest.raises((ModelLoadError, SourceError), match="GgufConfig"):
        load_engine(tmp_path, EngineOptions(device="cpu", dtype="float32"))
    with pytest.raises(SourceError, match="GgufConfig"):
        SourceRegistry(tiny_base()).read(tmp_path / "m.gguf")


def test_a_wrapped_base(tmp_path: Path) -> None:
    """transformers would call all of its tensors missing."""
    folder = save_tiny_model(tmp_path / "tiny")
    file = folder / "model.safetensors"
    save_file({f"module.{name}": t for name, t in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"begin with 'module\.'"):
        load_engine(folder, EngineOptions(device="cpu", dtype="float32"))


def test_python_s_errors_are_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that the engine cannot run is refused in words."""
    model = tiny_model()

    def forward(*args: object, needed: torch.Tensor, **options: object) -> None: ...

    monkeypatch.setattr(model.model.layers[0], "forward", forward)
    with pytest.raises(UnsupportedModelError) as caught:
        probe(model)
    assert "LlamaForCausalLM cannot be served" in str(caught.value)
    assert "argument" not in str(caught.value)


def test_json_of_another_form_is_told_in_words(tmp_path: Path) -> None:
    """No Python error is in the reasons."""
    world = VariantWorld(tmp_path)
    folder = world.checkpoint("ft", 1)
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    for content, said in (({}, "it has no 'weight_map'"), ([], "is of another type")):
        index.write_text(json.dumps(content))
        with pytest.raises(SourceError, match=said):
            SourceRegistry(tiny_base(), resident=world.resident).read(folder)
