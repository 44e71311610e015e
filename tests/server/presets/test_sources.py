"""Reading sources, and the paths that clients may name."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from merging.errors import BaseMismatchError, SourceError
from server.errors import ForbiddenError, InvalidRequestError
from server.presets.contents import Contents
from server.presets.database import StoreError
from server.presets.sources import NUM_RETIRED, SourceRegistry
from tests.server.presets.tiny import digest, tiny_base, write_adapter


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two source folders, side by side with one that is not."""
    write_adapter(tmp_path / "one" / "math", 1)
    write_adapter(tmp_path / "two" / "code", 2)
    write_adapter(tmp_path / "secret" / "adapter", 3)
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def registry(folders: tuple[Path, Path]) -> SourceRegistry:
    return SourceRegistry(tiny_base(), folders)


def refusal(registry: SourceRegistry, text: str) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        registry.folders.allowed_path(text)
    return caught.value


def test_relative_paths_are_tried_in_each_folder(registry, folders):
    """A relative path means the first source folder that has it."""
    assert registry.folders.allowed_path("math") == folders[0] / "math"
    assert registry.folders.allowed_path("code") == folders[1] / "code"
    assert registry.folders.allowed_path("./code/../code") == folders[1] / "code"


def test_absolute_paths_may_lead_inside(registry, folders):
    """An absolute path is allowed if it leads into a source folder."""
    assert registry.folders.allowed_path(str(folders[1] / "code")) == folders[1] / "code"


def test_what_is_inside_and_missing_is_left_to_the_reader(registry, folders):
    """A path inside that does not exist is allowed; reading it says what is missing."""
    path = registry.folders.allowed_path("nothing")
    assert path == folders[0] / "nothing"
    with pytest.raises(SourceError):
        registry.read(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "math\0",
        "..",
        "../secret/adapter",
        "../secret/nothing",
        "math/../../secret/adapter",
        "/",
        "/etc",
        "/nowhere/at/all",
        "../one-and-a-half",
    ],
)
def test_nothing_outside_is_reached(registry, text):
    """A path that leads out of every source folder is refused with a code of its own."""
    error = refusal(registry, text)
    assert error.code == "path_not_allowed"
    assert error.param == "path"
    assert error.status == 400


def test_the_refusal_tells_nothing_about_the_outside(registry, folders):
    """What exists outside and what does not are refused in the same words."""
    (folders[0].parent / "secret" / "file").touch()
    answers = {
        refusal(registry, text).message.replace(repr(text), "PATH")
        for text in ("../secret/adapter", "../secret/file", "../secret/nothing", "/etc/passwd/x")
    }
    assert len(answers) == 1


def test_links_are_followed_before_the_check(folders):
    """A link inside that leads outside is outside, one that leads inside is inside."""
    registry = SourceRegistry(tiny_base(), folders[:1])
    (folders[0] / "out").symlink_to(folders[0].parent / "secret" / "adapter")
    (folders[0] / "in").symlink_to(folders[0] / "math")
    (folders[0] / "loop").symlink_to(folders[0] / "loop")
    assert refusal(registry, "out").code == "path_not_allowed"
    assert registry.folders.allowed_path("in") == folders[0] / "math"
    with pytest.raises(SourceError):
        registry.read(registry.folders.allowed_path("loop"))


def test_files_that_link_outside_are_refused(registry, folders):
    """A folder inside whose files are links to the outside is refused too."""
    link = folders[0] / "math" / "adapter_config.json"
    link.unlink()
    link.symlink_to(folders[0].parent / "secret" / "adapter" / "adapter_config.json")
    assert refusal(registry, "math").code == "path_not_allowed"


def test_a_folder_with_the_same_beginning_is_outside(tmp_path):
    """`sources-private` is not inside `sources`."""
    write_adapter(tmp_path / "sources-private" / "a", 1)
    (tmp_path / "sources").mkdir()
    registry = SourceRegistry(tiny_base(), [tmp_path / "sources"])
    assert refusal(registry, "../sources-private/a").code == "path_not_allowed"


def test_without_source_folders_nothing_is_allowed(folders):
    """Without --source-dir clients register nothing, and the error names the option."""
    registry = SourceRegistry(tiny_base())
    with pytest.raises(ForbiddenError, match="--source-dir"):
        registry.folders.allowed_path(str(folders[0] / "math"))


def test_source_folders_may_be_relative(tmp_path, monkeypatch):
    """The operator's folder may be relative to where the server was started."""
    write_adapter(tmp_path / "sources" / "math", 1)
    monkeypatch.chdir(tmp_path)
    registry = SourceRegistry(tiny_base(), [Path("sources")])
    os.chdir("/")
    assert registry.folders.allowed_path("math") == tmp_path / "sources" / "math"


def test_equal_contents_are_one_object(registry, tmp_path):
    """Adapters with the same content share their memory, whatever their folders."""
    first, _ = registry.read(write_adapter(tmp_path / "a", 7))
    second, _ = registry.read(write_adapter(tmp_path / "b", 7))
    other, _ = registry.read(write_adapter(tmp_path / "c", 8))
    assert first is second
    assert other is not first


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_broken_files_are_refused(registry, tmp_path, file):
    """A missing, empty or truncated file is refused with a reason, by no other error."""
    for cut in (None, 0, 20):
        folder = write_adapter(tmp_path / "a", 7)
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        if cut is not None:
            (folder / file).write_bytes(content[:cut])
        with pytest.raises(SourceError):
            registry.read(folder)


def test_what_is_no_folder_is_refused(registry, tmp_path):
    """A path to a file or to nothing is refused with a reason, by no other error."""
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        with pytest.raises(SourceError):
            registry.read(tmp_path / name)


def test_an_adapter_of_another_shape_is_refused(registry, tmp_path):
    """An adapter with layers that the base does not have is refused."""
    folder = write_adapter(tmp_path / "a", 7)
    shallow = SourceRegistry(tiny_base(num_layers=1))
    registry.read(folder)
    with pytest.raises(SourceError, match="no linear layer"):
        shallow.read(folder)


def test_the_right_base_is_asked_for(tmp_path):
    """A recorded digest of another base is refused, unless mismatches are allowed."""
    folder = write_adapter(tmp_path / "a", 7, base_digest=digest("f"))
    with pytest.raises(BaseMismatchError):
        SourceRegistry(tiny_base()).read(folder)
    _, warnings = SourceRegistry(tiny_base(), allow_base_mismatch=True).read(folder)
    assert "another base" in warnings[0]


def test_another_base_name_is_a_warning(tmp_path):
    """A recorded hub id of another base is told, and the adapter is taken."""
    registry = SourceRegistry(replace(tiny_base(), hub_id="org/tiny"))
    folder = write_adapter(tmp_path / "a", 7)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/huge"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    _, warnings = registry.read(folder)
    assert "'org/huge'" in warnings[0]


def test_content_comes_from_memory_first(registry, tmp_path):
    """A content that is in memory needs no folder."""
    adapter, _ = registry.read(write_adapter(tmp_path / "a", 7))
    assert registry.has(adapter.digest)
    assert registry.content(adapter.digest) is adapter


@pytest.mark.parametrize("in_memory", [True, False])
def test_kept_content_outlives_its_folder(tmp_path, in_memory):
    """A content that was kept is there after its folder was written again in place."""
    contents = Contents(None if in_memory else tmp_path / "contents")
    folder = write_adapter(tmp_path / "a", 7)
    adapter, _ = SourceRegistry(tiny_base()).read(folder)
    for _ in range(2):
        contents.keep(adapter, folder)
    write_adapter(folder, 8)
    again = SourceRegistry(tiny_base(), contents=contents)
    assert again.has(adapter.digest)
    assert again.content(adapter.digest).digest == adapter.digest
    contents.prune({adapter.digest})
    assert contents.has(adapter.digest)
    contents.prune(set())
    assert not contents.has(adapter.digest)
    with pytest.raises(SourceError, match="is gone"):
        contents.read(adapter.digest)


def test_what_changes_meanwhile_is_not_kept(registry, tmp_path):
    """A folder that changed between reading and keeping leaves nothing behind."""
    contents = Contents(tmp_path / "contents")
    adapter, _ = registry.read(write_adapter(tmp_path / "a", 7))
    write_adapter(tmp_path / "a", 8)
    with pytest.raises(StoreError, match="changed while it was read"):
        contents.keep(adapter, tmp_path / "a")
    assert not contents.has(adapter.digest)
    assert list((tmp_path / "contents").iterdir()) == []


def test_half_a_content_is_replaced(registry, tmp_path):
    """What a crash left of a content is not taken for it, and is kept anew."""
    contents = Contents(tmp_path / "contents")
    adapter, _ = registry.read(write_adapter(tmp_path / "a", 7))
    half = tmp_path / "contents" / adapter.digest.removeprefix("sha256:")
    half.mkdir(parents=True)
    (half / "adapter_config.json").touch()
    assert not contents.has(adapter.digest)
    contents.keep(adapter, tmp_path / "a")
    assert contents.read(adapter.digest).digest == adapter.digest


def test_another_record_of_the_base_shares_the_tensors(registry, tmp_path):
    """Equal tensors whose folders name other bases are in memory once, each with its name."""
    first, _ = registry.read(write_adapter(tmp_path / "a", 7))
    folder = write_adapter(tmp_path / "b", 7)
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"tiny"', '"huge"'))
    second, _ = registry.read(folder)
    assert (first.base_name, second.base_name) == ("tiny", "huge")
    assert second.factors is first.factors


def test_few_retired_contents_are_kept(tmp_path):
    """Beside the current contents only the few that were used last stay in memory."""
    forgotten: list[str] = []
    contents = Contents(tmp_path / "contents")
    registry = SourceRegistry(tiny_base(), contents=contents, forget=forgotten.append)
    adapters = []
    for seed in range(NUM_RETIRED + 3):
        adapters.append(registry.read(write_adapter(tmp_path / "a", seed))[0])
        contents.keep(adapters[-1], tmp_path / "a")
    registry.content(adapters[1].digest)  # used again
    registry.release([adapters[0]])
    assert forgotten == [adapters[2].digest, adapters[3].digest]
    again = registry.content(adapters[2].digest)
    assert again is registry.content(adapters[2].digest)
    assert forgotten == [adapters[index].digest for index in (2, 3, 4)]


def test_paths_that_the_system_refuses(registry, folders):
    """A name that is too long is left to the reader; what is no Unicode is not inside."""
    for text in ("a" * 300, "a/" * 3000):
        with pytest.raises(SourceError):
            registry.read(registry.folders.allowed_path(text))
    assert refusal(registry, "\ud800").code == "path_not_allowed"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_folders_that_cannot_be_listed_are_refused(registry, folders):
    """Files that cannot be listed could lead outside: their folder is not allowed."""
    (folders[0] / "math").chmod(0o300)
    assert refusal(registry, "math").code == "path_not_allowed"
    (folders[0] / "math").chmod(0o700)
