"""Numbers and lists of prompts in words. People count prompts from 1, the JSON from 0."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 answer`, `12 answers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def prompts_named(indices: Sequence[int]) -> str:
    """`prompt 3`, `prompts 1 to 12`, `prompts 1, 4 and 7 to 9`, of indices from 0 in order."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [
        f"{run[0] + 1} to {run[-1] + 1}" if len(run) > 2 else ", ".join(str(i + 1) for i in run)
        for run in runs
    ]
    listed = ", ".join(parts)
    head, comma, last = listed.rpartition(", ")
    return f"prompt{'s' if len(indices) > 1 else ''} {f'{head} and {last}' if comma else listed}"
