"""Edits a preset in a loop and prints every acknowledged revision; killed by a test.

Run as `python -m tests.server.presets.editing_loop DATABASE_URL SOURCE_FOLDER`.
"""

import sys
from pathlib import Path

from server.presets.catalog import Catalog, Edit
from server.presets.store import PresetStore
from tests.server.presets.tiny import OPEN_POLICY, preset, tiny_base


def main(url: str, folder: str) -> None:
    """Revision n has weight n, so that what survives can be checked."""
    catalog = Catalog(PresetStore(url), tiny_base(), policy=OPEN_POLICY)
    catalog.load()
    catalog.add_source("math", Path(folder))
    catalog.create(preset(sources={"math": {"weight": 1.0}}), edit=Edit())
    number = 1
    while True:
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1
        patch = {"sources": {"math": {"weight": float(number)}}}
        # Every third edit is acknowledged before its revision serves.
        result = catalog.patch("tutor", patch, edit=Edit(wait=number % 3 != 0))
        assert result.record.revision == number


if __name__ == "__main__":
    main(*sys.argv[1:])
