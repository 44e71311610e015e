"""The command lines of `mergeserve serve` and `export`, generated from the settings."""

import argparse
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from server.commands.option_groups import GROUPS, METAVARS, OTHER
from server.settings import ENV_PREFIX, Settings

EPILOG = (
    f"Options can also be variables ({ENV_PREFIX}PORT) and lines of the file of --config "
    "(port: 8000); the command line wins over variables, and these over the file."
)


def add_settings(
    parser: argparse.ArgumentParser, *, shown: Collection[str], positional: bool = True
) -> list[tuple[argparse.Action, str]]:
    """Add an option for every setting, in groups; `shown` are those that --help tells of.

    What is not given is absent from the parsed arguments. Returns the options that --help leaves
    out, each with its text.
    """
    hidden: list[tuple[argparse.Action, str]] = []
    grouped = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in Settings.model_fields if name not in grouped)
    for title, names in {**GROUPS, OTHER: rest}.items():
        group = parser.add_argument_group(title)
        if positional and "model" in names:
            _add_model(group)
        for name in names:
            action, text = _add_option(group, name)
            if name not in shown:
                hidden.append((action, text))
                action.help = argparse.SUPPRESS
    return hidden


def given_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What was given on the command line, by setting. Raises ValueError for two models."""
    given = {
        name: value for name, value in vars(arguments).items() if name in Settings.model_fields
    }
    model = getattr(arguments, "positional_model", None)
    if model is not None:
        if given.get("model", model) != model:
            raise ValueError(f"two models are given: {model!r} and --model {given['model']!r}")
        given["model"] = model
    return given


def _add_model(group: Any) -> None:
    group.add_argument(
        "positional_model",
        nargs="?",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help=Settings.model_fields["model"].description,
    )


def _add_option(group: Any, name: str) -> tuple[argparse.Action, str]:
    field = Settings.model_fields[name]
    text = f"{field.description}{_default(field)}".replace("%", "%%")
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if field.annotation is bool:
        options |= {"action": "store_true"}
    else:
        is_list = get_origin(field.annotation) is tuple
        options |= {"action": "append" if is_list else "store", "metavar": _metavar(name, field)}
    return group.add_argument(f"--{name.replace('_', '-')}", **options), text


def _metavar(name: str, field: FieldInfo) -> str:
    return METAVARS.get(name) or "|".join(_choices(field.annotation)) or "N"


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, also inside `Literal | None`."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := _choices(part))), ())


def _default(field: FieldInfo) -> str:
    if field.default in (None, (), False):
        return ""
    shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f" (default: {shown})"
