"""The settings of a process, or every reason why they cannot be used."""

import difflib
import os
from collections.abc import Mapping

from pydantic import ValidationError

from server.settings import ENV_PREFIX, SECRET_FIELDS, Settings, SettingsError

OTHER_VARIABLES = frozenset({"MERGESERVE_URL", "MERGESERVE_CACHE_DIR"})
"""Variables with our prefix that `mergeserve presets` and the demo read."""


def load_settings(given: Mapping[str, object]) -> Settings:
    """The settings of this process, with `given` from the command line.

    Raises SettingsError with every reason.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**dict(given))  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(*_reasons(error)) from None


def _refuse_unknown_variables() -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = [name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known]
    if unknown:
        raise SettingsError(*(_unknown(name, known) for name in sorted(unknown)))


def _unknown(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown setting {name}" + (f": did you mean {close[0]}?" if close else "")


def _reasons(error: ValidationError) -> list[str]:
    reasons = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0]) if detail["loc"] else ""
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
            reasons.append(_unknown(name, set(Settings.model_fields)))
        elif not name:
            reasons.append(message)
        elif name in SECRET_FIELDS:
            reasons.append(f"--{name.replace('_', '-')}: {message}")
        else:
            inside = "".join(f"{part}: " for part in detail["loc"][1:] if isinstance(part, str))
            given = f"(got {detail['input']!r})"
            reasons.append(f"--{name.replace('_', '-')}: {inside}{message} {given}")
    return reasons
