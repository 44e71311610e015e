"""What a request's overrides mean, and which of them apply to what it asks for."""

from collections.abc import Collection
from typing import get_args

from pydantic import JsonValue

from server.errors import InvalidRequestError
from server.presets.ensemble_settings import EnsembleSettings, MemberSettings, Rule
from server.presets.served import Mode, Overrides

MODES: tuple[Mode, ...] = get_args(Mode)
RULES: tuple[str, ...] = get_args(Rule)


def asked_mode(in_model: str | None, overrides: Overrides) -> Mode | None:
    """The mode that a request asks for, in its model string or beside it."""
    asked = in_model or overrides.mode
    if in_model is not None and overrides.mode not in (None, in_model):
        raise InvalidRequestError(
            f"mergeserve.mode is {overrides.mode!r}, and the model string asks for {in_model!r}: "
            "give one of them",
            param="mergeserve.mode",
        )
    if asked is None:
        return None
    for mode in MODES:
        if asked == mode:
            return mode
    raise InvalidRequestError(
        f"mergeserve.mode: {asked!r} is not a mode; there are {', '.join(MODES)}",
        param="mergeserve.mode",
    )


def combination_fields(overrides: Overrides) -> dict[str, JsonValue]:
    """What a request says of how an ensemble combines its members."""
    fields: dict[str, JsonValue] = {
        "rule": overrides.rule,
        "temperature_order": overrides.temperature_order,
        "plausibility_alpha": overrides.plausibility_alpha,
    }
    return {name: value for name, value in fields.items() if value is not None}


def overridden(settings: EnsembleSettings, overrides: Overrides) -> EnsembleSettings:
    """The settings with what a request says in their place; of members field by field."""
    if overrides.rule is not None and overrides.rule not in RULES:
        raise InvalidRequestError(
            f"mergeserve.rule: {overrides.rule!r} is not a rule; there are {', '.join(RULES)}",
            param="mergeserve.rule",
        )
    members = dict(settings.members)
    for name, member in overrides.members.items():
        before = members.get(name, MemberSettings())
        members[name] = before.model_copy(update=member.model_dump(exclude_unset=True))
    return settings.model_copy(update={**combination_fields(overrides), "members": members})


def check_only_merges(overrides: Overrides) -> None:
    """Refuse what says how an ensemble combines, where none runs."""
    fields = combination_fields(overrides) | ({"members": True} if overrides.members else {})
    for name in fields:
        raise InvalidRequestError(
            f"mergeserve.{name}: says how an ensemble combines its members; a merge has none. "
            'Ask for an ensemble with "mode": "ensemble"',
            param=f"mergeserve.{name}",
        )


def check_no_weights(overrides: Overrides, what: str) -> None:
    """Refuse weights for what has none."""
    if overrides.weights or overrides.auto is not None:
        raise InvalidRequestError(
            f"mergeserve.weights: {what} has no weights to override; they belong to presets",
            param="mergeserve.weights",
        )


def check_known(names: Collection[str], known: Collection[str], what: str) -> None:
    """Refuse weights for what is not there."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidRequestError(
            f"mergeserve.weights: {what} {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known))}",
            param="mergeserve.weights",
        )
