"""Write the table in docs/models.md from what each family does when it is tried.

    python -m scripts.document_models [FAMILY …] [--check]

With families only these are tried, and what was found is printed. With --check nothing is written,
and the exit status is 1 if the page is not up to date. All families take about five minutes.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from scripts.families import FAMILIES, STATEFUL, VISION_FAMILIES
from scripts.family_trial import Trial, try_family

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN = "<!-- what follows is written by `python -m scripts.document_models` -->\n"
HEADER = (
    "| family | served | attention | text compared | adapter compared | checkpoint compared |",
    "|---|---|---|---|---|---|",
)
STATE = "| `{}` | no: keeps more than keys and values | | | | |"


def page(trials: Sequence[Trial]) -> str:
    """The page with its table as it should be."""
    introduction, begin, _ = PAGE.read_text().partition(BEGIN)
    assert begin, f"{PAGE} has lost the line {BEGIN!r}"
    lines = [
        f"transformers {transformers.__version__}, {len(trials)} families tried, "
        f"{sum(trial.served == 'yes' for trial in trials)} served.\n",
        *HEADER,
        *map(_row, sorted(trials, key=lambda trial: trial.family)),
        *(STATE.format(family) for family in STATEFUL),
    ]
    return introduction + BEGIN + "\n" + "\n".join(lines) + "\n"


def _row(trial: Trial) -> str:
    found = (trial.served, trial.attention, trial.text, trial.adapter, trial.checkpoint)
    cells = [f"`{trial.family}`", *("no" if cell.startswith("no:") else cell for cell in found)]
    if trial.served != "yes":
        cells[1] = "no"
    return f"| {' | '.join(cells)} |"


def try_families(families: Sequence[str]) -> list[Trial]:
    """Try them one after the other, and say what does not work."""
    trials = []
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            trial = try_family(family, Path(folder))
        print(f"{family}: {_row(trial)}", file=sys.stderr)
        for cell in (trial.served, trial.text, trial.adapter, trial.checkpoint):
            if cell not in ("yes", ""):
                print(f"    {cell[:500]}", file=sys.stderr)
        trials.append(trial)
    return trials


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tiny models
    transformers.logging.set_verbosity_error()
    trials = try_families(args.families or [*FAMILIES, *VISION_FAMILIES])
    if args.families:
        return
    wanted = page(trials)
    if args.check:
        sys.exit(0 if PAGE.read_text() == wanted else f"{PAGE} is out of date: run this script")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
