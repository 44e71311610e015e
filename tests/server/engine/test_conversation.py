"""Which chat template a model has, and whether it can be used."""

import json
import re

import pytest

from server.engine.conversation import pick_template
from server.engine.errors import ModelLoadError
from server.engine.model_files import load_tokenizer
from tests.models import save_tiny_model, tiny_model
from tests.tokenizers import byte_tokenizer

SEVERAL = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    ("templates", "template", "problem"),
    [
        (None, None, None),
        ("{{ messages }}", "{{ messages }}", None),
        (SEVERAL, "{{ messages }}", None),
        ({"rag": "a", "tool_use": "b"}, None, r"several \(rag, tool_use\), and no 'default'"),
        ("{% if %}", None, "does not parse: line 1"),
        ("a\n{{ x | nofilter }}", None, "does not parse: line 2"),
        ({"default": "{{"}, None, "'default' does not parse"),
        ("{{ raise_exception('no') }}", "{{ raise_exception('no') }}", None),
    ],
)
def test_pick_template(templates, template, problem) -> None:
    """Of several templates "default" counts; what cannot be used is none, for a reason."""
    picked, why = pick_template(byte_tokenizer(), templates)
    assert picked == template
    if problem is None:
        assert why is None
    else:
        assert re.search(problem, why or ""), why


@pytest.mark.parametrize("form", ["list", "folder"])
def test_several_templates_in_files(tmp_path, form) -> None:
    """A list in tokenizer_config.json and a folder of templates are the same: "default" is used."""
    folder = save_tiny_model(tmp_path / "tiny")
    if form == "folder":
        (folder / "chat_template.jinja").write_text("default{{ messages[0].content }}")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    else:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "default{{ messages[0].content }}"},
        ]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder, tiny_model(), None)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "defaulthi"


def test_the_start_tells_of_a_template_that_cannot_be_used(tmp_path, caplog) -> None:
    """The log names the folder, the reason and the way out; --chat-template is that way."""
    folder = save_tiny_model(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{% for %}")
    assert not load_tokenizer(folder, tiny_model(), None).has_chat_template()
    for part in (str(folder), "does not parse", "--chat-template FILE"):
        assert part in caplog.text
    assert load_tokenizer(folder, tiny_model(), "{{ messages }}").has_chat_template()


def test_a_template_of_the_operator_has_to_parse(tmp_path) -> None:
    """A mistake in --chat-template is told at the start, with its line."""
    folder = save_tiny_model(tmp_path / "tiny")
    with pytest.raises(ModelLoadError, match="--chat-template does not parse: line 2"):
        load_tokenizer(folder, tiny_model(), "a\n{% for %}")
