"""The merging process: `python -m server.adapters.worker REQUEST ANSWER`.

It ends with the process that started it, whose end of the pipe to its standard input closes then.
"""

import os
import sys
import threading
from pathlib import Path

from merging.errors import MergingError
from server.adapters.request import MergeAnswer, MergeRequest
from server.engine.errors import EngineError

NICENESS = 10
"""Serving goes first."""


def main() -> None:
    """Merge, and write what came of it."""
    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request, answer = sys.argv[1:]
    try:
        # Importing PEFT takes seconds, and is what this process is for.
        from server.adapters.peft_merge import merge

        found = merge(MergeRequest.from_json(Path(request).read_text()))
    except (MergingError, EngineError) as error:
        found = MergeAnswer(reasons=getattr(error, "reasons", (str(error),)))
    except OSError as error:
        found = MergeAnswer(reasons=(f"its dense delta could not be written: {error}",))
    except MemoryError:
        found = MergeAnswer(reasons=("there is no memory for a float32 copy of the base",))
    found.write(Path(answer))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
