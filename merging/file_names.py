"""What the tensors of a merged model are called in its files: as the base's files call them."""

from collections.abc import Sequence

from merging.base import locate
from merging.checkpoint_weights import CheckpointWeights
from merging.source import Weights


def file_name(name: str, base: Weights, layers: Sequence[int]) -> str:
    """The name in files of the tensor `name` of a merged model.

    `layers`: for each of its layers the base's that it is built like. What the base's files lack,
    such as a head that is tied no more, keeps the model's name.
    """
    if not isinstance(base, CheckpointWeights):
        return name
    place = locate(name)
    like = name if place is None else place.at(layers[place.layer])
    entry = base.entries.get(like)
    if entry is None:
        return name
    own = locate(entry.name)
    return entry.name if place is None or own is None else own.at(place.layer)
