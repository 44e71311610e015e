"""`make fresh`: what it takes from the README and from its caller, and when it fails."""

import re
from pathlib import Path

import pytest

from scripts.fresh.checks import check_shell
from scripts.fresh.clone import Clone, clean_environment
from scripts.fresh.failure import FreshError
from scripts.fresh.readme import Example, indented_blocks, read_examples

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_examples_of_the_readme_are_found() -> None:
    """The README has curl lines that edit under a stream, an install line and a Python example,
    each with what it prints.
    """
    found = read_examples(README)
    assert any(
        "-X PATCH" in example.text and "stream.txt" in example.text for example in found.shell
    )
    assert all(example.output for example in (*found.shell, found.python))
    assert found.install.endswith("openai")
    compile(found.python.text, "README.md", "exec")


def test_only_the_address_is_replaced() -> None:
    """For a server on another port the address changes and nothing else."""
    example = read_examples(README).shell[0]
    moved = example.at("http://127.0.0.1:1")
    assert moved.count("http://127.0.0.1:1/") == len(re.findall("127.0.0.1:8000", example.text))
    assert moved.replace("http://127.0.0.1:1/", "http://127.0.0.1:8000/") == example.text


def test_readme_without_an_example_is_an_error() -> None:
    """A README that lost its curl lines cannot pass."""
    with pytest.raises(FreshError, match="no block of code with curl"):
        read_examples("# mergeserve\n")


def test_blocks_end_with_prose() -> None:
    """Lines of one block may have blank ones between; prose ends it."""
    page = "one\n\n    a\n\n      b\n\ntwo\n\n    c\n"
    assert list(indented_blocks(page)) == ["a\n\n  b", "c"]


def test_environment_has_index_settings_only() -> None:
    """Of the caller's variables PATH, TORCH_INDEX and what pip needs to reach an index remain."""
    kept = {"PATH", "TORCH_INDEX", "PIP_INDEX_URL", "https_proxy", "SSL_CERT_FILE"}
    others = {"HOME", "PIP_CACHE_DIR", "PYTHONPATH", "VIRTUAL_ENV", "HF_HOME", "XDG_CACHE_HOME"}
    given = dict.fromkeys(kept | others | {"MERGESERVE_CACHE_DIR", "MAKEFLAGS"}, "caller's")
    found = clean_environment(given, Path("/empty"))
    assert {name for name, value in found.items() if value == "caller's"} == kept
    assert found["HOME"] == "/empty"


def test_another_output_fails(tmp_path: Path) -> None:
    """Commands that print something else than the README says fail with both, line by line."""
    clone = Clone(tmp_path, tmp_path, {"PATH": "/usr/bin:/bin"})
    check_shell(Example("echo one; echo two", "one\ntwo"), clone, "http://127.0.0.1:1")
    with pytest.raises(FreshError, match=r"(?s)-three.*\+two"):
        check_shell(Example("echo one; echo two", "one\nthree"), clone, "http://127.0.0.1:1")


def test_failing_command_is_shown(tmp_path: Path) -> None:
    """A command that fails is an error with its exit code and what it said."""
    clone = Clone(tmp_path, tmp_path, {"PATH": "/usr/bin:/bin"})
    with pytest.raises(FreshError, match=r"(?s)exit code 3.*no way"):
        clone.run("echo no way >&2; exit 3", cwd=tmp_path)
