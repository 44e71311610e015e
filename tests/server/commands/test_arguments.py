"""The command line, generated from the settings."""

import pytest

from server.commands.arguments import add_settings, given_settings
from server.commands.option_groups import EXPORT, GROUPS, METAVARS, SERVE
from server.commands.parser import CommandParser
from server.settings import Settings


def parse(*argv: str) -> dict[str, object]:
    """What these arguments give."""
    parser = CommandParser()
    add_settings(parser, shown=Settings.model_fields)
    return given_settings(parser.parse_args(argv))


def test_nothing_given() -> None:
    """What is not on the command line is left to the environment and the file."""
    assert parse() == {}


def test_every_setting_has_an_option() -> None:
    """Each setting can be given by its name with hyphens."""
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        given = parse(flag) if field.annotation is bool else parse(flag, "x")
        assert given.keys() == {name}


def test_repeated_options() -> None:
    """Options that may be given several times make lists."""
    given = parse("--source", "a=b", "--source", "c=d", "--api-key", "k")
    assert given == {"source": ["a=b", "c=d"], "api_key": ["k"]}


def test_model() -> None:
    """The model is positional, or an option; two different ones are an error."""
    assert parse("m") == parse("--model", "m") == parse("m", "--model", "m") == {"model": "m"}
    with pytest.raises(ValueError, match="two models"):
        parse("m", "--model", "n")


def test_help_shows_descriptions_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """--help tells what each option is for, its choices and its default."""
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in Settings.model_fields.values():
        assert field.description is not None
        assert " ".join(field.description.split()) in text
    assert "(default: 8000)" in text
    assert "--serve-sources yes|no" in text
    assert "--shutdown-timeout S" in text


@pytest.mark.parametrize("argv", [["--prot", "1"], ["--por", "1"], ["a", "b"]])
def test_unknown_option(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option is an error; names are not guessed."""
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert "unrecognized" in capsys.readouterr().err


def test_groups_name_settings() -> None:
    """Whatever help texts say of options is of options that there are, and each has one group."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped)
    assert {*grouped, *METAVARS, *SERVE, *EXPORT} <= Settings.model_fields.keys()
