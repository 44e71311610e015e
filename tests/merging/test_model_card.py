"""A card says how a model was made, and the hub can read it."""

import yaml

from merging.model_card import ModelCard

RECIPE = {"merge_method": "ties", "models": [{"model": "org/a", "parameters": {"weight": 0.5}}]}


def card(**fields: object) -> str:
    given = {
        "title": "out",
        "digest": "sha256:00",
        "method": "ties",
        "seed": 7,
        "dtype": "float32",
        "models": {"org/base": "sha256:aa", "org/a|b\nc": "sha256:bb"},
        "recipe": RECIPE,
        **fields,
    }
    return ModelCard(**given).text()  # type: ignore[arg-type]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    """Tags, every model that went in, and the library."""
    front = yaml.safe_load(card().split("---\n")[1])
    assert front == {
        "base_model": ["org/base", "org/a|b\nc"],
        "library_name": "transformers",
        "tags": ["merge", "mergekit"],
    }
    peft = yaml.safe_load(card(library="peft").split("---\n")[1])
    assert (peft["base_model"], peft["library_name"]) == (["org/base"], "peft")


def test_the_recipe_can_be_taken_out_and_run() -> None:
    """It is the YAML block, and reads back as it was."""
    block = card().split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == RECIPE


def test_seed_digests_and_notes_are_there() -> None:
    """What is needed to make the same weights again."""
    text = card(notes=["rounded\nto bf16"])
    for part in ("seed: 7", "`sha256:00`", "| org/base | `sha256:aa` |", "dtype: float32"):
        assert part in text
    assert "- rounded to bf16\n" in text
    assert "| org/a\\|b c |" in text
