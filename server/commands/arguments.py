"""The command line of `mergeserve serve`, generated from the settings."""

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from server.settings import ENV_PREFIX, Settings

METAVARS = {
    "model": "MODEL",
    "config": "FILE",
    "source": "NAME=DIR_OR_HUB_ID[,parent=NAME]",
    "source_dir": "DIR",
    "presets": "FILE",
    "host": "ADDRESS",
    "device": "DEVICE",
    "database_url": "URL",
    "api_key": "KEY",
    "admin_key": "KEY",
    "api_key_file": "FILE",
    "admin_key_file": "FILE",
    "served_model_name": "NAME",
    "chat_template": "FILE",
    "variant_memory": "GIB",
    "dense_cache": "GIB",
    "kv_memory": "GIB",
    "request_timeout": "S",
    "fidelity_sample": "SHARE",
    "shutdown_timeout": "S",
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting. What is not given is absent from the parsed arguments."""
    parser.epilog = (
        f"Every option can also be set in the environment, as {ENV_PREFIX}HOST and so on, and in "
        "the YAML file of --config. The command line wins over the environment, and that over the "
        "file."
    )
    parser.add_argument(
        "positional_model",
        nargs="?",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help=Settings.model_fields["model"].description,
    )
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description}{_default(field)}".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text
            )
        else:
            parser.add_argument(
                flag,
                dest=name,
                action="append" if _is_list(field) else "store",
                metavar=_metavar(name, field),
                default=argparse.SUPPRESS,
                help=text,
            )


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


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _metavar(name: str, field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    return "|".join(choices) if choices else METAVARS.get(name, "N")


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
