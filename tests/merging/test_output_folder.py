"""A folder appears whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merging.errors import OutputError
from merging.output_folder import output_folder


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    """Its parents are made, and what is in it can be read by others."""
    target = tmp_path / "parent" / "out"
    with output_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("whole")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o755
    assert (target / "sub" / "file").stat().st_mode & 0o777 == 0o644
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """Neither under the name nor beside it, also when the user interrupts."""

    def fail() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    """Whatever happens, a folder of that name is whole."""
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from merging.output_folder import output_folder\n"
        "with output_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with output_folder(tmp_path / "out") as folder:  # and what it left is in nobody's way
        (folder / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with files, a file and a link are refused before anything is written."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, reason in (("full", "not empty"), ("file", "not a folder"), ("link", "not a folder")):
        with pytest.raises(OutputError, match=reason), output_folder(tmp_path / name):
            pytest.fail("the block must not run")
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "link"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """As `mkdir out` before would make it."""
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert os.listdir(tmp_path / "out") == ["file"]


def test_a_folder_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    """The other's files are not lost."""

    def write() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("theirs")

    with pytest.raises(OutputError, match="meanwhile"):
        write()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "No space left on device; nothing is left there: free some space"),
        (errno.EFBIG, "File too large; nothing is left there"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_the_disk_refuses_is_said(tmp_path: Path, number: int, reason: str) -> None:
    """With the folder's name, and nothing is left."""
    with pytest.raises(OutputError, match=reason), output_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []
