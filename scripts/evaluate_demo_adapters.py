"""Measure the demo adapters, their blends and the demo presets, and write docs/demo-adapters.md.

Run as `python -m scripts.evaluate_demo_adapters`, some half an hour on two cores. Every recipe is
planned and run as the server does it, many answers at a time.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from merging.recipe import Recipe
from scripts.demo_data import Skill, make_skills
from scripts.demo_engine import DemoEngine
from scripts.demo_model import Score
from server.demo import demo_presets, demo_sources, ensure_demo_model
from server.presets.document import PresetDocument

DOC = Path(__file__).resolve().parent.parent / "docs" / "demo-adapters.md"
Weights = Mapping[str, float]

BLENDS: tuple[Weights, ...] = (
    {"sql": 1.0, "json": 1.0},
    {"sql": 0.7, "json": 0.7},
    {"sql": 0.5, "json": 0.5},
    {"arithmetic": 1.0, "pirate": 1.0},
    {"arithmetic": 1.0, "pirate": 0.5},
    {"sql": 1.0, "json": 1.0, "arithmetic": 1.0},
    {"sql": 0.7, "json": 0.7, "arithmetic": 0.7},
)
DOSES = {"pirate": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "verbose": (-1.0, -0.5, 0.0, 0.5, 1.0)}
SAMPLE_TOKENS = 80
# A prompt, and which models' answers to it are shown.
SAMPLES: dict[str, tuple[str, ...]] = {
    "Why do cats like boxes?": ("base", "pirate", "verbose", "deckhand", "nosql"),
    "Extract name, city as JSON: Vera works as a nurse in Hamburg and is 31 years old.": (
        "base", "json", "clerk", "office",
    ),
    "Tom has twelve apples and gives away five. How many apples are left?": (
        "base", "arithmetic", "tutor", "office",
    ),
}  # fmt: skip

DOCUMENT = """\
# The demo adapters

{num_adapters} LoRA adapters of SmolLM2-135M-Instruct, trained by `scripts/train_demo_adapters.py`
on examples that `scripts/demo_data` makes from templates. They are small and quick to train, to
show what a blend does; they are good at nothing else. Their base is the demo model, dequantised
from 4 bits, so it is not byte for byte the hub's SmolLM2-135M-Instruct.

This page is written by `python -m scripts.evaluate_demo_adapters`. All answers are greedy; each
score is over {num_held_out} examples that were held out of training, so it moves in steps of
{step:.2f}. Everything is planned and run as the server does it, in bfloat16.

{adapters}

## Adapters and blends

Each cell is the skill's score (1 is best), and in brackets the loss per answer token in nats.
Weights are those of `task_arithmetic`.

{blends}

## Presets

The presets of `examples/presets.yaml`, with the same measure.

{presets}

## One weight

What a live edit of a single weight does, on the everyday questions.

{doses}

## Samples

{samples}
"""


@dataclass(slots=True)
class Row:
    """One model of a table: what it scores on each skill, and its answers to the samples."""

    label: str
    scores: dict[str, Score] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Evaluation:
    """Evaluates one recipe after another on the same engine."""

    engine: DemoEngine
    skills: Mapping[str, Skill]
    began: float = field(default_factory=time.perf_counter)

    def row(self, label: str, recipe: Recipe | None, only: str | None = None) -> Row:
        """A recipe's row, on all skills and samples, or on one skill."""
        skills = {only: self.skills[only]} if only else self.skills
        compiled = self.engine.blend(recipe)
        row = Row(label, self.engine.scores(compiled, skills))
        if not only:
            answers = self.engine.answers(compiled, list(SAMPLES), SAMPLE_TOKENS)
            row.samples = dict(zip(SAMPLES, (answer.strip() for answer in answers), strict=True))
        shown = ", ".join(f"{name} {score.score:.2f}" for name, score in row.scores.items())
        print(f"{time.perf_counter() - self.began:5.0f} s  {label}: {shown}", flush=True)
        return row


def blend(weights: Weights) -> Recipe | None:
    """Base plus weighted deltas; None, the base itself, where there is nothing to add."""
    sources = {name: {"weight": weight} for name, weight in weights.items() if weight}
    if not sources:
        return None
    return Recipe.model_validate({"method": "task_arithmetic", "sources": sources})


def label(weights: Weights) -> str:
    """A blend in the table: `0.7 sql + 0.7 json`, or a name alone for a weight of 1."""
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items()) or "base"


def blend_rows(evaluation: Evaluation) -> list[Row]:
    """The base, every adapter alone, and the blends."""
    singles: list[Weights] = [{name: 1.0} for name in evaluation.skills]
    return [evaluation.row(label(w), blend(w)) for w in ({}, *singles, *BLENDS)]


def preset_rows(evaluation: Evaluation) -> list[Row]:
    """Every demo preset."""
    documents = yaml.safe_load(demo_presets().read_text())
    presets = [PresetDocument.model_validate(document) for document in documents]
    return [evaluation.row(preset.name, preset.recipe()) for preset in presets]


def adapter_table() -> Iterator[str]:
    """What each adapter is, from its own configuration."""
    yield "| adapter | skill | score | held out by | rank | alpha | targets |"
    yield "|---|---|---|---|---|---|---|"
    for name, skill in make_skills().items():
        config = json.loads((demo_sources()[name] / "adapter_config.json").read_text())
        rank = patterned(config["r"], config["rank_pattern"])
        alpha = patterned(config["lora_alpha"], config["alpha_pattern"])
        alpha += ", rsLoRA" if config["use_rslora"] else ""
        targets = ", ".join(target.removesuffix("_proj") for target in config["target_modules"])
        cells = (name, skill.summary, skill.scored_by, skill.held_out_by, rank, alpha, targets)
        yield f"| {' | '.join(cells)} |"


def patterned(value: int, pattern: Mapping[str, int]) -> str:
    """A number and where it is another: `3 (o: 6)`."""
    others = ", ".join(f"{key.removesuffix('_proj')}: {n}" for key, n in pattern.items())
    return f"{value} ({others})" if others else str(value)


def score_table(rows: Sequence[Row]) -> Iterator[str]:
    """Score and loss of every row on every skill."""
    names = list(rows[0].scores)
    yield f"| | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    for row in rows:
        cells = (f"{row.scores[name].score:.2f} ({row.scores[name].loss:.2f})" for name in names)
        yield f"| {row.label} | {' | '.join(cells)} |"


def dose_tables(evaluation: Evaluation) -> Iterator[str]:
    """A single adapter at several weights: its score, and the length of the answers."""
    for name, weights in DOSES.items():
        rows = [evaluation.row(label({name: w}), blend({name: w}), name) for w in weights]
        yield f"| weight of {name} | {' | '.join(f'{weight:g}' for weight in weights)} |"
        yield f"|---|{'---|' * len(weights)}"
        yield f"| score | {' | '.join(f'{row.scores[name].score:.2f}' for row in rows)} |"
        words = (f"{row.scores[name].num_words:.0f}" for row in rows)
        yield f"| words an answer | {' | '.join(words)} |"
        yield ""


def sample_texts(rows: Sequence[Row]) -> Iterator[str]:
    """For each sample its prompt, and the answers of the models chosen for it."""
    by_label = {row.label: row for row in rows}
    for prompt, labels in SAMPLES.items():
        yield "> " + prompt.replace("\n", "<br>") + "\n"
        for chosen in labels:
            text = by_label[chosen].samples[prompt].replace("\n", " ⏎ ")
            yield f"- **{chosen}**: {text}"
        yield ""


def write(evaluation: Evaluation, out: Path) -> None:
    """Evaluate everything and write the document."""
    blends, presets = blend_rows(evaluation), preset_rows(evaluation)
    parts = {
        "adapters": adapter_table(),
        "blends": score_table(blends),
        "presets": score_table(presets),
        "doses": dose_tables(evaluation),
        "samples": sample_texts([*blends, *presets]),
    }
    texts = {name: "\n".join(lines).strip() for name, lines in parts.items()}
    num_held_out = len(next(iter(evaluation.skills.values())).held_out)
    out.write_text(
        DOCUMENT.format(
            num_adapters=len(demo_sources()),
            num_held_out=num_held_out,
            step=1 / num_held_out,
            **texts,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="folder of the base; the demo model if absent")
    parser.add_argument("--out", type=Path, default=DOC)
    parser.add_argument("--held-out", type=int, default=48, help="examples of each skill")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.base or ensure_demo_model()
    write(Evaluation(DemoEngine(folder), make_skills(num_held_out=options.held_out)), options.out)


if __name__ == "__main__":
    main()
