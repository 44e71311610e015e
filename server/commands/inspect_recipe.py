"""What a merge does: a summary of one screen, and all figures if they are asked for."""

import argparse
import os
from pathlib import Path

from merging.diagnosis import Diagnosis, GroupFigures
from merging.errors import OutputError
from merging.plan_diagnosis import diagnose_plan
from server.commands.logs import configure_logging
from server.commands.progress import ProgressReporter
from server.commands.table import table
from server.offline.heat_map import number, page
from server.offline.merge_facts import merge_facts
from server.offline.opening import OpenMerge, open_recipe
from server.offline.reading import interpretation
from server.offline.recipe_file import read_recipe_file

WIDTH = 110
MAX_PAIRS = 10
NUM_MOST = 3


def print_report(arguments: argparse.Namespace) -> None:
    """Print the report, and write the page. Raises MergingError or EngineError."""
    configure_logging("text")
    progress = ProgressReporter()
    try:
        merge = open_recipe(
            read_recipe_file(arguments.recipe),
            model=arguments.model,
            given=dict(arguments.source),
            seed=None,
            dtype=None,
            allow_base_mismatch=arguments.allow_base_mismatch,
            progress=progress,
        )
        diagnosis = diagnose_plan(
            merge.plan,
            merge.base.weights,
            progress=lambda done, total: progress("comparing deltas", done, total),
        )
    finally:
        progress.close()
    print(summary(merge, diagnosis))
    if arguments.all:
        print(f"\n{figures_table(diagnosis)}")
    if arguments.html is not None:
        _write(arguments.html, merge, diagnosis)
        print(f"\nheat maps: {arguments.html}")
    elif not arguments.all:
        print("\n--all shows every kind of tensor in every layer, --html FILE draws them")


def summary(merge: OpenMerge, diagnosis: Diagnosis) -> str:
    """What the merge is, what its figures mean, and the figures of all tensors together."""
    warnings = [f"warning: {warning}" for warning in merge.warnings]
    parts = [
        "\n".join(warnings),
        "\n".join(interpretation(diagnosis)),
        table([], merge_facts(merge)),
        _sources_table(diagnosis.total),
        _pairs_table(diagnosis.total),
        _most_changed(diagnosis),
    ]
    return "\n\n".join(part for part in parts if part)


def figures_table(diagnosis: Diagnosis) -> str:
    """A row for every kind in every layer, and one for all together."""
    total = diagnosis.total
    header = ["LAYER", "KIND", "CHANGE"]
    header += [f"SHARE {source.name}" for source in total.sources]
    for pair in total.pairs:
        header += [f"COS {pair.first}/{pair.second}", f"CONFLICT {pair.first}/{pair.second}"]
    return table(header, [_row(group) for group in (*diagnosis.groups, total)])


def _sources_table(total: GroupFigures) -> str:
    rows = [
        [source.name, *map(number, (source.relative_norm, source.cosine, source.contribution))]
        for source in total.sources
    ]
    rows.append(["merge", number(total.relative_change), "-", "-"])
    header = ["DELTA OF", "NORM / BASE'S", "COS WITH MERGE", "SHARE OF MERGE"]
    return table(header, rows, width=WIDTH)


def _pairs_table(total: GroupFigures) -> str:
    pairs = sorted(total.pairs, key=lambda pair: -abs(pair.cosine or 0.0))
    rows = [
        [f"{pair.first} and {pair.second}", number(pair.cosine), number(pair.sign_conflict)]
        for pair in pairs[:MAX_PAIRS]
    ]
    if len(pairs) > MAX_PAIRS:
        rows.append([f"and {len(pairs) - MAX_PAIRS} pairs that are less alike", "", ""])
    return table(["PAIR", "COS", "SIGN CONFLICT"], rows, width=WIDTH) if rows else ""


def _most_changed(diagnosis: Diagnosis) -> str:
    groups = [group for group in diagnosis.groups if group.relative_change is not None]
    groups.sort(key=lambda group: -(group.relative_change or 0.0))
    named = [f"{_name(group)} ({number(group.relative_change)})" for group in groups[:NUM_MOST]]
    return f"most changed: {', '.join(named)}" if len(groups) > NUM_MOST else ""


def _name(group: GroupFigures) -> str:
    return group.kind if group.layer is None else f"layer {group.layer} {group.kind}"


def _row(group: GroupFigures) -> list[object]:
    pairs = [figure for p in group.pairs for figure in (p.cosine, p.sign_conflict)]
    figures = [group.relative_change, *(s.contribution for s in group.sources), *pairs]
    layer = "-" if group.layer is None else group.layer
    return [layer, group.kind, *(number(figure) for figure in figures)]


def _write(path: Path, merge: OpenMerge, diagnosis: Diagnosis) -> None:
    names = [name for name, text in merge_facts(merge, public=True) if name.startswith("source ")]
    sources = ", ".join(name.removeprefix("source ") for name in names)
    title = f"{merge.recipe.method} of {sources or 'the base'}"
    facts, reading = merge_facts(merge, public=True), interpretation(diagnosis)
    text = page(diagnosis, title=title, facts=facts, reading=reading)
    try:
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(text, "utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
