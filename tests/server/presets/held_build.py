"""Begins a build that never ends, and says so; killed by a test.

Run as `python -m tests.server.presets.held_build FOLDER`.
"""

import sys
import threading
from pathlib import Path

from server.presets.catalog import Edit
from tests.server.presets.forge import TIES, VariantWorld
from tests.server.presets.tiny import preset


def main(folder: str) -> None:
    """tutor@1 is built, tutor@2 is acknowledged and not built."""
    world = VariantWorld(Path(folder))
    catalog = world.open_with_sources()
    catalog.create(preset(**TIES), edit=Edit())
    world.forge.wait_for_start()
    world.forge.gate.clear()
    patch = {"sources": {"ft": {"density": 0.9}}}
    record = catalog.patch("tutor", patch, edit=Edit(wait=False)).record
    world.forge.wait_for_start()
    sys.stdout.write(f"{record.revision} {record.state}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
