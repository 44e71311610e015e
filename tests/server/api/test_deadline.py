"""The deadline of a request."""

import asyncio

import pytest

from server.api.deadline import Deadline
from server.api.errors import RequestTimeoutError


async def _give_up() -> None:
    raise TimeoutError("the work's own")


@pytest.mark.parametrize("seconds", [None, 20.0])
def test_a_timeout_of_the_work_is_its_own(seconds: float | None) -> None:
    """It is no reason to say that the request took too long."""

    async def run() -> None:
        await Deadline.after(seconds).bound(_give_up())

    with pytest.raises(TimeoutError, match="the work's own"):
        asyncio.run(run())


def test_what_has_passed_is_told_before_anything_begins() -> None:
    """`check` refuses then, and never without a deadline."""

    async def run() -> None:
        Deadline.after(None).check()
        deadline = Deadline.after(0.001)
        await asyncio.sleep(0.01)
        deadline.check()

    with pytest.raises(RequestTimeoutError, match=r"0\.001 s \(--request-timeout\)$"):
        asyncio.run(run())
