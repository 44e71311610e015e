"""What was acknowledged survives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import server
from server.presets.catalog import Edit
from tests.server.presets.forge import VariantWorld
from tests.server.presets.tiny import World

ROOT = Path(server.__file__).parent.parent


def start(module: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a script beside this one; what it acknowledges is on its standard output."""
    command = [sys.executable, "-m", f"tests.server.presets.{module}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("num_edits", [1, 40])
def test_acknowledged_edits_survive_kill_9(world: World, num_edits: int):
    """Whenever the process is killed, every edit that it acknowledged is there, whole and ready."""
    folder = world.adapter("math", 0)
    world.close()
    process = start("editing_loop", world.url, str(folder))
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < num_edits:
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    acknowledged = max(acknowledged, *(int(line) for line in rest if line), 0)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()

    catalog = world.open()
    newest = catalog.preset("tutor")
    # One more may be on disk than was acknowledged, never less.
    assert newest.revision in (acknowledged, acknowledged + 1)
    records = catalog.revisions("tutor")
    assert [record.revision for record in records] == list(range(newest.revision, 0, -1))
    for record in records:
        assert record.state == "ready"
        assert record.document.sources == {"math": {"weight": float(record.revision)}}
        served = catalog.resolve(record.label)
        assert (served.members[0].weights.coefficients == record.revision).all()
    assert catalog.resolve("tutor").revision == newest.revision
    assert catalog.patch("tutor", {"seed": 1}, edit=Edit()).record.revision == newest.revision + 1


def test_a_build_that_kill_9_cuts_off(tmp_path: Path):
    """After a kill amid a build that nobody waited for, the revision before it serves until the
    build was made again.
    """
    process = start("held_build", str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == "2 building\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()

    world = VariantWorld(tmp_path)
    catalog = world.open(held=True)
    assert (catalog.preset("tutor").revision, catalog.preset("tutor").state) == (2, "building")
    asked = catalog.begin("tutor")
    world.forge.gate.set()
    assert asked.result(20).revision == 1
    deadline = time.monotonic() + 20
    while catalog.preset("tutor").state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert catalog.resolve("tutor").revision == 2
    world.close()
