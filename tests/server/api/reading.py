"""A scripted engine's part in a comparison: answers by weights, and logits for readers."""

import torch

from server.engine.request import Output, Request
from tests.server.api.scripted import VOCAB_SIZE, Script, ids, says


def compares(answers: dict[str, str], default: str = "yes") -> Script:
    """Answer what `answers` has for a member's name, and read texts with random logits.

    Logits depend on the weights' digest and the position alone, so that the same rows read the same
    text the same way.
    """

    def script(request: Request) -> list[Output]:
        if request.reader is None:
            names = [member.name for member in request.members]
            text = next((answers[name] for name in names if name in answers), default)
            return list(says(text)(request))
        assert request.num_read is not None
        rows = [_logits(member.weights.digest, request.num_read) for member in request.members]
        request.reader(0, torch.stack(rows))
        return [Output("", (), finish_reason="length")]

    return script


def _logits(digest: str, num_positions: int) -> torch.Tensor:
    seed = int(digest.rpartition(":")[2][:12], 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_positions, VOCAB_SIZE, generator=generator)


def answers_of(request: Request) -> tuple[int, ...]:
    """The tokens that a reading request reads."""
    assert request.num_read is not None
    return request.members[0].prompt[-request.num_read :]


__all__ = ["answers_of", "compares", "ids"]
