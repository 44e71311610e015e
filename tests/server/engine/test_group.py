"""What a group makes of its request."""

from server.engine.detokenizer import Detokenizer
from server.engine.group import Group
from server.engine.request import Member, Request, SamplingParams
from tests.adapters import blend_of
from tests.merging.tiny import base_of
from tests.models import tiny_model


def group_of(seed: int | None) -> Group:
    member = Member((1, 2), blend_of(base_of(tiny_model()), {}))
    request = Request((member,), SamplingParams(seed=seed))
    return Group(request, Detokenizer(lambda token_ids: "", (), ()))


def test_every_integer_is_a_seed_of_64_bits() -> None:
    """Clients send negative seeds too, and those of 64 bits stay distinct."""
    assert [group_of(seed).seed for seed in (0, 7, -1, 2**64 + 3)] == [0, 7, 2**64 - 1, 3]


def test_a_group_without_a_seed_draws_one() -> None:
    assert group_of(None).seed != group_of(None).seed
