"""Starts the process in which PEFT merges an adapter, and waits for it."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from merging.errors import SourceError
from server.adapters.request import MergeAnswer, MergeRequest

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""An adapter's config must not make it fetch anything."""

MAX_SHOWN = 500  # characters of what a process that failed said


def merge_apart(request: MergeRequest) -> MergeAnswer:
    """Merge in a process of its own: PEFT is a large import, and whatever an adapter does to it,
    serving goes on.

    Raises SourceError with the reasons if it cannot be merged.
    """
    with TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(request.to_json())
        code, said = _run([str(asked), str(answer)])
        try:
            found = MergeAnswer.read(answer)
        except (OSError, ValueError) as error:
            how = f"signal {-code}, perhaps for want of memory" if code < 0 else f"exit code {code}"
            raise SourceError(
                f"the process that merges it ended with {how}: {said or 'it said nothing'}"
            ) from error
    if found.reasons:
        raise SourceError(list(found.reasons))
    return found


def _run(arguments: list[str]) -> tuple[int, str]:
    """The exit code, and the last of what was said."""
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", "server.adapters.worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process, process.stderr:
        try:
            said = process.stderr.read()  # until it ends
            return process.wait(), said.decode(errors="replace").strip()[-MAX_SHOWN:]
        except BaseException:
            process.kill()
            raise
