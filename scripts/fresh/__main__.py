"""`make fresh`: from an empty home folder and a fresh clone of HEAD to the README's last line."""

import signal
import sys
import tempfile
from pathlib import Path

from scripts.fresh.checks import check_edit_under_stream, check_python, check_shell, first_token
from scripts.fresh.clone import Clone
from scripts.fresh.failure import FreshError
from scripts.fresh.readme import read_examples
from scripts.fresh.serving import Serving
from scripts.fresh.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
GOAL_SECONDS = 150


def main() -> int:
    """Run every step; 0 if all went well. What was made is deleted either way."""
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(143))  # so that all is cleaned up
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="mergeserve-fresh-") as folder:
        try:
            try_out(Path(folder), steps)
        except (FreshError, OSError) as error:
            print(f"make fresh: {error}", file=sys.stderr)
            return 1
    print(f"fresh: all of it works, in {steps.seconds:.0f} s")
    return 0


def try_out(folder: Path, steps: Steps) -> None:
    """Clone, serve, follow the README, stop. Raises FreshError at the first thing that is wrong."""
    with steps.step("git clone HEAD"):
        clone = Clone.of_head(ROOT, folder)
    examples = read_examples((clone.project / "README.md").read_text("utf-8"))
    with Serving(clone) as server:
        with steps.step("make serve, until it is ready"):
            server.wait_until_ready()
        with steps.step("the first token"):
            first_token(server.url)
        print(f"       from clone to first token: {steps.seconds:.0f} s (goal: {GOAL_SECONDS} s)")
        for number, example in enumerate(examples.shell, 1):
            with steps.step(f"the README's curl lines, block {number}"):
                check_shell(example, clone, server.url)
        with steps.step("what the README's Python example needs"):
            clone.run(examples.install, cwd=clone.project)
        with steps.step("the README's Python example"):
            check_python(examples.python, clone, server.url)
        with steps.step("PATCH under an open stream"):
            check_edit_under_stream(server.url)
        with steps.step("SIGTERM to the process group"):
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
