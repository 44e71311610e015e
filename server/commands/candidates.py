"""Who is compared, as the command line names it: models, and presets with other weights."""

import argparse

from pydantic import JsonValue

from server.commands.http_client import CommandError
from server.commands.preset_change import parse_weight


def read_candidates(arguments: argparse.Namespace) -> dict[str, JsonValue]:
    """The preset's parts, or the candidates that are named, and which of them is the reference.

    Raises CommandError.
    """
    preset, reference = arguments.preset, arguments.reference
    if not arguments.candidate:
        parts = {preset: "merge", f"{preset}:merge": "merge", f"{preset}:ensemble": "ensemble"}
        known: dict[str, JsonValue] = {"model": preset}
        return (
            known if reference is None else {**known, "reference": parts.get(reference, reference)}
        )
    given = [preset, *arguments.candidate]
    if reference is not None and reference not in given:
        given.append(reference)
    index = 0 if reference is None else given.index(reference)
    return {"candidates": [parse_candidate(text) for text in given], "reference": index}


def parse_candidate(text: str) -> JsonValue:
    """Read `MODEL`, or `MODEL,SOURCE=WEIGHT,…`: a preset with weights that are not saved."""
    model, *pairs = text.split(",")
    if not pairs:
        return model
    weights: dict[str, JsonValue] = {}
    for pair in pairs:
        if "=" not in pair:
            raise CommandError(f"--candidate {text}: {pair!r} is not SOURCE=WEIGHT")
        source, weights[source] = parse_weight(pair)
    return {"model": model, "mergeserve": {"weights": weights}, "name": text[:64]}
