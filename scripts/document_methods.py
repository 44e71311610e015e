"""Write the catalogue in docs/methods.md from the methods themselves.

    python -m scripts.document_methods [--check]

With --check nothing is written, and the exit status is 1 if the page is not up to date.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from merging.methods import BUILT_IN
from merging.methods.method import Method
from merging.methods.parameter import Parameter

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
BEGIN = "<!-- what follows is written by `python -m scripts.document_methods` -->\n"

PATHS = {
    "linear": "a blend of adapters",
    "geometric": "a blend of adapters, its coefficients from their Gram matrix",
    "elementwise": "a variant: weights are written",
    "low_rank": "a blend: one adapter is made of the sources, which are adapters",
}
BASES = {
    "required": "on a base",
    "optional": "with or without a base",
    "input": "the base may be one of them",
}
HEADER = (
    "| parameter | of | type | default | bounds | meaning |",
    "|---|---|---|---|---|---|",
)


def page() -> str:
    """The page with its catalogue as it should be."""
    introduction, begin, _ = PAGE.read_text().partition(BEGIN)
    assert begin, f"{PAGE} has lost the line {BEGIN!r}"
    sections = ("\n".join(_section(method)) for method in BUILT_IN.values())
    return introduction + BEGIN + "\n" + "\n".join(sections)


def _section(method: Method) -> Iterator[str]:
    yield f"### {method.name}\n"
    yield method.description + "\n"
    facts = [f"[{method.title}]({method.paper})", PATHS[method.kind]]
    facts.append(f"{_count(method)}, {BASES[method.base]}")
    if method.is_random:
        facts.append("random, and the same again for the same seed")
    yield " · ".join(facts) + "\n"
    if method.parameters:
        yield from HEADER
        yield from map(_row, method.parameters)
        yield ""


def _count(method: Method) -> str:
    low, high = method.min_sources, method.max_sources
    number = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    return f"{number} source{'' if number == '1' else 's'}"


def _row(parameter: Parameter) -> str:
    facts = parameter.describe()
    default = "required" if facts["required"] else f"`{str(facts['default']).lower()}`"
    bounds = [facts["minimum"], facts["maximum"]]
    shown = (
        "" if bounds == [None, None] else " to ".join("" if b is None else f"{b}" for b in bounds)
    )
    kind = ", ".join(parameter.choices) if parameter.choices else parameter.type
    cells = [
        f"`{parameter.name}`",
        parameter.scope,
        kind,
        default,
        shown,
        parameter.doc.description,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    wanted = page()
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text() == wanted else f"{PAGE} is out of date: run this script")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
