"""What is said of a folder or file without weights that can be read: the way out is in it."""

from pathlib import Path

import pytest

from merging.not_weights import no_weights, not_a_folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds no .safetensors file"),
        (["sql/adapter_model.safetensors"], "but folders in it do: name {}/sql"),
        (
            ["sql/adapter_model.safetensors", "chat/adapter_model.safetensors", "logs/x"],
            "but folders in it do: name {0}/chat or {0}/sql",
        ),
        (
            ["pytorch_model.bin"],
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)",
        ),
        (["adapter_model.bin"], "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(NEW)"),
        (["m.gguf"], "from_pretrained('{}', gguf_file='m.gguf', quantization_config=GgufConfig("),
        (["adapters.npz"], "of an old MLX"),
    ],
)
def test_a_folder(tmp_path: Path, files: list[str], said: str) -> None:
    """It is told by what the folder holds."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert said.format(tmp_path) in no_weights(tmp_path)


def test_a_folder_that_cannot_be_listed_is_a_reason(tmp_path: Path) -> None:
    """What the system refuses while it looks for weights is the reason, by no other error."""
    for name in ("nothing", "a" * 300):
        assert "cannot be read" in no_weights(tmp_path / name)


def test_what_is_no_folder(tmp_path: Path) -> None:
    """A file of weights, any file, and nothing at all."""
    for name, said in (
        ("m.gguf", "is a GGUF file"),
        ("x.txt", "is a file: name the folder"),
    ):
        (tmp_path / name).touch()
        assert said in not_a_folder(tmp_path / name)
    assert not_a_folder(tmp_path / "nothing").endswith("nothing is not a folder")
    assert not_a_folder(tmp_path / ("x" * 300)).endswith("is not a folder")
