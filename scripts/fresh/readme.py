"""The README's examples, as they stand there: indented blocks, each followed by what it prints."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from textwrap import dedent

from scripts.fresh.failure import FreshError

ADDRESS = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Example:
    """Commands or code, and what they print."""

    text: str
    output: str

    def at(self, url: str) -> str:
        """The text for a server at another address; the only thing in it that is ever changed."""
        return self.text.replace(ADDRESS, url)


@dataclass(frozen=True, slots=True)
class Examples:
    """All that the README has one try: curl lines, what the Python example needs, and that."""

    shell: tuple[Example, ...]
    install: str
    python: Example


def read_examples(readme: str) -> Examples:
    """Find them. Raises FreshError for what is not there."""
    blocks = list(indented_blocks(readme))
    pairs = list(pairwise(blocks))
    shell = tuple(Example(*pair) for pair in pairs if f"curl -s {ADDRESS}" in pair[0])
    install = [block for block in blocks if "pip install" in block and "openai" in block]
    python = [Example(*pair) for pair in pairs if pair[0].startswith("from openai import")]
    for what, found in (("curl", shell), ("pip install openai", install), ("openai", python)):
        if not found:
            raise FreshError(f"README.md has no block of code with {what}")
    return Examples(shell, install[0], python[0])


def indented_blocks(markdown: str) -> Iterator[str]:
    """Blocks of code, in the order of the page, without their indentation."""
    block: list[str] = []
    for line in [*markdown.splitlines(), "the end"]:
        if line.startswith("    ") or (block and not line):
            block.append(line)
        elif block:
            yield dedent("\n".join(block)).strip("\n")
            block = []
