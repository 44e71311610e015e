"""Files that cannot grow: the system refuses them as a full disk does, without a disk to fill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.server.commands.test_export import Shop

LIMIT = 4096  # bytes of a file: less than any weights, more than any line that is logged

SCRIPT = f"""
import json, resource, sys
from server.__main__ import main
commands = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))
print([main(command) for command in commands])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit kills the process")
def test_what_cannot_be_written_is_removed(tmp_path: Path) -> None:
    """Merging, and exporting as a checkpoint and as an adapter, say which folder has no room, how
    much is needed and how much is free; nothing is left there, hidden or not.
    """
    shop, outs = Shop(tmp_path / "shop"), tmp_path / "outs"
    outs.mkdir()
    (document,) = (
        d for d in yaml.safe_load((shop.root / "presets.yaml").read_text()) if d["name"] == "tutor"
    )
    recipe = shop.root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    sources = [
        part for item in shop.sources.items() for part in ("--source", "=".join(map(str, item)))
    ]
    model = ["--model", str(shop.base)]
    commands = [
        ["merge", str(recipe), str(outs / "merged"), *model, *sources],
        ["export", "tutor", str(outs / "whole"), *shop.options()],
        ["export", "tutor", str(outs / "adapter"), *shop.options(), "--as", "adapter"],
    ]
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[1, 1, 1]\n", done.stderr
    assert os.listdir(outs) == []
    size = sum(t.nbytes for t in load_file(shop.base / "model.safetensors").values())
    for name in ("merged", "whole"):
        told = f"{outs / name} cannot be written: File too large: {size:,} bytes are needed, and "
        assert told in done.stderr
    assert f"{outs / 'adapter'} cannot be written: File too large: " in done.stderr
    assert done.stderr.count(" are free; nothing is left there: free some space or raise") == 3
