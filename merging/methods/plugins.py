"""Methods of other packages, from the entry points of the group `mergeserve.methods`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from merging.methods.method import Method

GROUP: Final = "mergeserve.methods"


@dataclass(frozen=True, slots=True)
class Plugins:
    """The methods that were found, and a sentence for each entry point that has none to give."""

    methods: tuple[Method, ...]
    problems: tuple[str, ...]


def load_plugins(
    built_in: Mapping[str, Method], found: Iterable[EntryPoint] | None = None
) -> Plugins:
    """Load every entry point of the group: each is a Method. Whatever one raises is a problem.

    Raises ValueError if a method has the name of a built-in one or of another package's.
    """
    methods: dict[str, Method] = {}
    origins = {name: f"mergeserve's own {name!r}" for name in built_in}
    problems = []
    for point in sorted(entry_points(group=GROUP) if found is None else found):
        origin = f"{point.name!r} ({point.value}) of {point.dist.name if point.dist else 'unknown'}"
        try:
            method = point.load()
        except Exception as error:
            problems.append(f"method {origin} cannot be loaded: {type(error).__name__}: {error}")
            continue
        if not isinstance(method, Method):
            problems.append(f"method {origin} is not a Method but {type(method).__name__}")
            continue
        if method.name in origins:
            raise ValueError(
                f"two methods are named {method.name!r}: {origins[method.name]} and {origin}; "
                f"uninstall that package, or rename its method"
            )
        origins[method.name] = origin
        methods[method.name] = method
    return Plugins(tuple(methods.values()), tuple(problems))
