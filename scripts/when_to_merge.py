"""Compare blends of the demo adapters with their ensembles, and write what was found into
docs/when-to-merge.md, below what is said of it there.

Run as `python -m scripts.when_to_merge`. For pairs and triples of adapters at several weights, a
preset is compared with its parts on held-out prompts of its skills, as `POST /v1/compare` does it,
in this process. One comparison takes minutes on two CPU cores; `--only` picks some, and results of
earlier runs are kept beside (`--results`).
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from scripts.demo_data import make_skills
from server.api.compare import prepare
from server.api.compare_schemas import CompareBody
from server.api.service import Service
from server.app import load_service
from server.metrics import Metrics
from server.presets.document import parse_document
from server.presets.record import Edit
from server.settings import Settings

DOC = Path(__file__).resolve().parent.parent / "docs" / "when-to-merge.md"
SCORERS = {"sql": "exact", "json": "json", "arithmetic": "number"}
BLENDS: Mapping[str, Mapping[str, float]] = {
    "sql-json-low": {"sql": 0.5, "json": 0.5},
    "sql-json-full": {"sql": 1.0, "json": 1.0},
    "clerk": {"sql": 0.5, "json": 0.9},
    "sql-arithmetic": {"sql": 0.6, "arithmetic": 0.6},
    "office": {"sql": 0.4, "json": 1.0, "arithmetic": 0.6},
}
MAX_TOKENS = 40

RUN = "## The run\n"
"""The heading from which on the document is this script's."""

DOCUMENT = """
Written by `python -m scripts.when_to_merge`. {num_prompts} held-out prompts of each skill,
greedy answers of at most {max_tokens} tokens, in bfloat16 on {num_threads} of 2 cores. A score is
the share of right answers with its 95 % interval; JS is the mean over the positions of the
references, in nats.

{summary}

{sections}
"""


def preset_body(name: str, num_prompts: int) -> CompareBody:
    """The comparison of one preset with its parts."""
    skills = make_skills(num_held_out=num_prompts)
    tagged = [(tag, e) for tag in BLENDS[name] for e in skills[tag].held_out]
    return CompareBody.model_validate(
        {
            "model": name,
            "messages": [[{"role": "user", "content": e.prompt}] for _, e in tagged],
            "references": [example.answer for _, example in tagged],
            "tags": [tag for tag, _ in tagged],
            "scorer": {tag: SCORERS[tag] for tag in BLENDS[name]},
            "margin": 0.1,
            "max_tokens": MAX_TOKENS,
            "positions": False,
        }
    )


async def compare(service: Service, name: str, num_prompts: int) -> dict[str, object]:
    """The result of one comparison."""
    comparison = await prepare(service, preset_body(name, num_prompts))
    await comparison.run.finish()
    result: dict[str, object] = json.loads(comparison.result(streamed=False))
    kept = {key: value for key, value in result.items() if key not in ("prompts", "ribbons")}
    return {**kept, "routed": routed(result), "num_threads": torch.get_num_threads()}


def routed(result: Mapping) -> dict[str, dict[str, int]]:
    """For each tag, how many prompts the route gave to each source."""
    (route,) = (c["index"] for c in result["candidates"] if c["role"] == "route")
    found: dict[str, dict[str, int]] = {}
    for prompt in result["prompts"]:
        weights = prompt["answers"][route]["weights"]
        counts = found.setdefault(prompt["tag"], dict.fromkeys(weights, 0))
        for name, weight in weights.items():
            counts[name] += weight == 1
    return found


async def measure(names: Sequence[str], num_prompts: int, results: Path) -> None:
    """Compare the presets that are asked for, and keep each result as a file."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(demo=True, database_url=f"sqlite:///{Path(folder) / 'demo.db'}")
        service = load_service(settings, Metrics())
        service.engine.start()
        try:
            for name in names:
                sources = {source: {"weight": w} for source, w in BLENDS[name].items()}
                document = parse_document({"name": name, "sources": sources})
                service.catalog.replace(name, document, edit=Edit())
                found = await compare(service, name, num_prompts)
                (results / f"{name}.json").write_text(json.dumps(found))
                print(f"{name}: {found['markdown']}", flush=True)
        finally:
            await service.engine.stop()
            service.close()


def summary(results: Mapping[str, dict]) -> Iterator[str]:
    """One line for each blend and skill."""
    yield "| blend | skill | specialist | merge | ensemble | route | the route took |"
    yield "|---|---|---|---|---|---|---|"
    for name, result in results.items():
        roles = {candidate["role"]: candidate for candidate in result["candidates"]}
        counts = result["routed"]
        for tag in result["tags"]:
            cells = [
                score(tag, index)
                for index in (
                    tag["specialist"],
                    *(roles[role]["index"] for role in ("merge", "ensemble", "route")),
                )
            ]
            taken = ", ".join(f"{source} {n}" for source, n in counts[tag["tag"]].items())
            yield f"| {label(name)} | {tag['tag']} | {' | '.join(cells)} | {taken} |"
    yield ""
    yield (
        "| blend | JS of merge and ensemble | tokens/s: one adapter | merge | ensemble | route | "
        "rows of the ensemble |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, result in results.items():
        roles = {candidate["role"]: candidate for candidate in result["candidates"]}
        speeds = [
            f"{roles[role]['cost']['tokens_per_second']:.0f}"
            for role in ("source", "merge", "ensemble", "route")
        ]
        forwards = roles["ensemble"]["cost"]["forwards_per_token"]
        divergences = roles["merge"]["versus"]["divergences"]
        js = next(d["js"] for d in divergences if d["text"] == "given")
        yield f"| {label(name)} | {js:.4f} | {' | '.join(speeds)} | {forwards:.0f} |"


def score(tag: Mapping, index: int) -> str:
    """A score with its interval."""
    found = tag["candidates"][index]["summary"]["score"]
    return f"{found['estimate']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def label(name: str) -> str:
    """What a blend is made of."""
    return " + ".join(f"{weight:g} {source}" for source, weight in BLENDS[name].items())


def sections(results: Mapping[str, dict]) -> Iterator[str]:
    """Every comparison's own Markdown, without the long tables."""
    for name, result in results.items():
        yield f"### {label(name)}\n"
        yield result["markdown"].partition("\nmerge against ")[0].rstrip() + "\n"


def write(results: Mapping[str, dict], num_prompts: int) -> None:
    """The document, of all results that there are; what stands above them is left as it is."""
    said, _, _ = DOC.read_text().partition(RUN)
    found = DOCUMENT.format(
        num_prompts=num_prompts,
        max_tokens=MAX_TOKENS,
        num_threads="/".join(sorted({str(r["num_threads"]) for r in results.values()})),
        summary="\n".join(summary(results)),
        sections="\n".join(sections(results)).rstrip(),
    )
    DOC.write_text(said + RUN + found)


def main() -> None:
    """Measure what is asked for, and write the document of all that was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=48, help="of each skill")
    parser.add_argument("--only", nargs="*", choices=list(BLENDS), default=list(BLENDS))
    parser.add_argument("--results", type=Path, default=Path("when-to-merge-results"))
    options = parser.parse_args()
    options.results.mkdir(exist_ok=True)
    asyncio.run(measure(options.only, options.prompts, options.results))
    paths = {name: options.results / f"{name}.json" for name in BLENDS}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    write(found, options.prompts)


if __name__ == "__main__":
    main()
