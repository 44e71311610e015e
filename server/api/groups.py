"""From what a request is pinned to, and its prompts, to what the engine runs."""

from ensemble.errors import RuleError
from ensemble.rule import Rule
from server.api.prompts import EncodedPrompt
from server.engine.request import Member
from server.errors import InvalidRequestError
from server.presets.served import Served


def engine_members(served: Served, prompt: EncodedPrompt) -> tuple[Member, ...]:
    """The rows of one prompt's group: each member reads its own prompt, or the request's."""
    return tuple(
        Member(prompt.own.get(member.name, prompt.token_ids), member.weights, member.name)
        for member in served.members
    )


def shown_members(served: Served, members_top_k: int | None) -> tuple[str, ...]:
    """The members whose own log-probabilities a request asks for, in the order of their rows."""
    if members_top_k is None:
        return ()
    if served.combination is None:
        raise InvalidRequestError(
            "mergeserve.members_top_k: a merge has no members; they are an ensemble's",
            param="mergeserve.members_top_k",
        )
    return tuple(member.name for member in served.members)


def compile_rules(served: Served, temperature: float) -> tuple[Rule | None, Rule | None]:
    """How the rows become one distribution at temperature 1, and the one that tokens are drawn
    from where that differs. None and None for one row. InvalidRequestError for a temperature
    that the rule cannot have.
    """
    combination = served.combination
    if combination is None:
        return None, None
    rule = combination.compile()
    if combination.temperature_order == "after" or temperature == 1:
        return rule, None
    try:
        drawn_from = combination.compile(temperature)
    except RuleError as error:
        raise InvalidRequestError(str(error), param="temperature") from error
    return rule, None if drawn_from == rule else drawn_from
