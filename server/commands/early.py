"""What is wrong with a command line, told before torch is imported and a model loaded.

Each function gets the parsed arguments and raises MistakesError with every reason that it finds.
What takes longer to see is the command's own to say.
"""

import argparse
import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from merging.errors import OutputError
from merging.output_folder import check_target
from merging.regular_file import is_there
from server.commands.failure import MistakesError
from server.engine.errors import ModelLoadError
from server.engine.location import local_folder

if TYPE_CHECKING:
    from server.settings import Settings

ADAPTER_CONFIG = "adapter_config.json"
USAGE_ERROR = 2


def check_serve(arguments: argparse.Namespace) -> None:
    """Settings, folders and the port; `arguments.settings` are the settings afterwards."""
    settings = _settings(arguments)
    if settings.model is None and not settings.demo:
        raise MistakesError(
            ["no model is given: name a folder or a hub id, or give --demo"], USAGE_ERROR
        )
    _check([_base(settings.model), *_sources(settings), _port(settings.host, settings.port)])


def check_merge(arguments: argparse.Namespace) -> None:
    """The recipe is there, the models that options name are, and the target is free."""
    named = [_named(name, location) for name, location in arguments.source]
    _check([_file(arguments.recipe), _target(arguments.out_dir), _base(arguments.model), *named])


def check_export(arguments: argparse.Namespace) -> None:
    """Options that go together; `arguments.settings` are the settings afterwards."""
    settings = _settings(arguments)
    if arguments.form == "checkpoint" and (arguments.rank or arguments.uniform_rank):
        raise MistakesError(["--rank and --uniform-rank go with --as adapter"], USAGE_ERROR)
    if arguments.rank is not None and arguments.rank < 1:
        raise MistakesError(["--rank: must be at least 1"], USAGE_ERROR)
    _check([_target(arguments.out_dir), _base(settings.model), *_sources(settings)])


def check_inspect(arguments: argparse.Namespace) -> None:
    """The folder or the recipe is there, and the page can be written."""
    if arguments.recipe is not None:
        named = [_named(name, location) for name, location in arguments.source]
        _check([_file(arguments.recipe), _page(arguments.html), _base(arguments.model), *named])
        return
    if arguments.html is not None or arguments.source or arguments.all:
        raise MistakesError(["--html, --all and --source go with --recipe"])
    if (arguments.to_lora is None) != (arguments.out is None):
        raise MistakesError(["--to-lora RANK and --out DIR go together"])
    if arguments.to_lora is not None and arguments.model is None:
        raise MistakesError(["--to-lora needs the base: name it with --model"])
    is_folder = Path(arguments.folder).is_dir()
    reason = None if is_folder else f"{arguments.folder} is not a folder"
    _check([reason, _base(arguments.model)])


def check_compare(arguments: argparse.Namespace) -> None:
    """The prompts are there, and what is asked for can be written."""
    pages = [_page(path) for path in (arguments.html, arguments.markdown, arguments.json)]
    _check([_file(arguments.prompts), *pages])


def _check(reasons: Iterable[str | None]) -> None:
    if found := [reason for reason in reasons if reason is not None]:
        raise MistakesError(found)


def _settings(arguments: argparse.Namespace) -> "Settings":
    # Imported here: it takes longer than all that the other commands check.
    from server.commands.arguments import given_settings
    from server.settings import SettingsError
    from server.settings_loading import load_settings

    try:
        settings = load_settings(given_settings(arguments))
    except (SettingsError, ValueError) as error:
        reasons = error.reasons if isinstance(error, SettingsError) else (str(error),)
        raise MistakesError(reasons, USAGE_ERROR) from error
    arguments.settings = settings
    return settings


def _sources(settings: "Settings") -> list[str | None]:
    return [_named(spec.name, spec.location) for spec in settings.source]


def _named(name: str, location: str) -> str | None:
    folder = location.partition(",parent=")[0]
    reason = _reason(lambda: local_folder(folder))
    return None if reason is None else f"--source {name}: {reason}"


def _base(model: str | None) -> str | None:
    """Why a base cannot be one, as far as a look at its folder tells."""
    if model is None:
        return None
    if reason := _reason(lambda: local_folder(model)):
        return reason
    folder = local_folder(model)
    if folder is not None and (folder / ADAPTER_CONFIG).is_file():
        name = folder.resolve().name
        return (
            f"{model} is an adapter, and no base: name the model that it was trained on, and give "
            f"this one with --source {name}={model}"
        )
    return None


def _target(folder: Path) -> str | None:
    return _reason(lambda: check_target(folder))


def _reason(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (ModelLoadError, OutputError) as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _file(path: Path) -> str | None:
    try:
        return None if is_there(path) else f"{path}: there is no such file"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _page(path: Path | None) -> str | None:
    if path is None or path.absolute().parent.is_dir():
        return None
    return f"{path} cannot be written: there is no folder {path.absolute().parent}"


def _port(host: str, port: int) -> str | None:
    """Why a port cannot be listened on. It may still be taken before the server does."""
    if port == 0:
        return None
    try:
        with socket.create_server((host, port), family=_family(host)):
            return None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {port} of {host} is in use: stop what listens there, or choose another "
                "with --port (0 picks a free one)"
            )
        return f"--host {host} --port {port}: {error.strerror or error}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
