"""What the operator lets callers do, said with the name of the setting where it is not allowed."""

from merging.plan import Plan
from server.errors import ForbiddenError, UnprocessableError
from server.presets.document import PresetDocument
from server.presets.policy import Policy
from server.presets.sources import Source


class Permissions:
    """Holds requests against a policy. ForbiddenError names the setting."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def check_level(self, document: PresetDocument, levels: tuple[str, ...], what: str) -> None:
        """Refuse to change `what` of a preset unless its level of overrides is one of these."""
        level = document.overrides or self._policy.overrides
        if level in levels:
            return
        setting = "its `overrides`" if document.overrides else "the server's --overrides"
        raise ForbiddenError(
            f"preset {document.name!r} cannot be asked for {what}: {setting} is {level!r}",
            param="mergeserve",
        )

    def check_temporary(self, plan: Plan, param: str) -> None:
        """Refuse to build weights for one request, unless the operator allows that."""
        if plan.variant is not None and self._policy.inline_recipes != "variant":
            raise ForbiddenError(
                f"{param}: these weights would have to be built for this request ({plan.reason}), "
                f"and the server's --inline-recipes is {self._policy.inline_recipes!r}; it would "
                "have to be 'variant'",
                param=param,
            )

    def check_probe(self, plan: Plan, param: str) -> None:
        """Refuse to build weights that explain a preset, where nothing may be built for anybody.

        Who asks may override the preset's weights: that is checked before.
        """
        if plan.variant is not None and self._policy.inline_recipes == "off":
            raise ForbiddenError(
                f"weights would have to be built for that ({plan.reason}), and the server's "
                "--inline-recipes is 'off'; it would have to be 'blend'",
                param=param,
            )

    def check_inline(self, param: str) -> None:
        """Refuse what needs no preset, unless the operator allows that."""
        if self._policy.inline_recipes == "off":
            raise ForbiddenError(f"{param}: the server's --inline-recipes is 'off'", param=param)

    def source_plan(self, source: Source) -> Plan:
        """The plan of a source that is called by itself."""
        if not self._policy.serve_sources:
            raise ForbiddenError(
                f"the source {source.name!r} cannot be called by itself: the server's "
                "--serve-sources is 'no'",
                param="model",
            )
        return plan_of(source)


def plan_of(source: Source) -> Plan:
    """The plan of a source alone; UnprocessableError if it has none."""
    if source.plan is None:
        raise UnprocessableError(
            f"the source {source.name!r} cannot be called: {'; '.join(source.reasons)}",
            param="model",
        )
    return source.plan
