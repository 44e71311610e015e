"""What goes with a tokenizer goes with the merge."""

import json
from pathlib import Path

from merging.companions import copy_companions, set_chat_template


def test_what_is_copied(tmp_path: Path) -> None:
    """Tokenizer, templates, generation config and licence, links followed; no weights, no config,
    no card, no code.
    """
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    target.mkdir()
    wanted = [
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model"),
        *("chat_template.jinja", "additional_chat_templates/tools.jinja", "LICENSE"),
        "generation_config.json",
    ]
    others = ["model.safetensors", "config.json", "README.md", "modeling.py", "x.bin", "notes.txt"]
    for name in [*wanted, *others]:
        (source / name).write_text(name)
    (tmp_path / "blob").write_text("linked")
    (source / "added_tokens.json").symlink_to(tmp_path / "blob")
    assert copy_companions(source, target) == sorted([*wanted, "added_tokens.json"])
    assert not (target / "added_tokens.json").is_symlink()
    assert (target / "added_tokens.json").read_text() == "linked"
    found = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert found == {*wanted, "added_tokens.json"}


def test_every_form_of_an_old_template_goes(tmp_path: Path) -> None:
    """Else it would depend on the reader which one counts."""
    (tmp_path / "chat_template.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old", "x": "é"}')
    set_chat_template(tmp_path, "new")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"x": "é"}
    assert (tmp_path / "chat_template.jinja").read_text() == "new"
    assert not (tmp_path / "chat_template.json").exists()
