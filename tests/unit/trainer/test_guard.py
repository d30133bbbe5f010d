"""Fences and once-only changes."""

import asyncio

import pytest

from crescendo.common.errors import DeadlineError, RequestError, StaleFenceError
from crescendo.common.fence import FenceGuard
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.guard import Once


def fence(epoch: int, counter: int = 0) -> common_pb2.Fence:
    return common_pb2.Fence(epoch=epoch, counter=counter)


def test_older_fences_are_refused() -> None:
    guard = FenceGuard()
    for accepted in (fence(1), fence(1, 3), fence(1, 3), fence(2)):
        guard.check(accepted)
    for stale in (fence(1, 9), fence(1)):
        with pytest.raises(StaleFenceError):
            guard.check(stale)
    with pytest.raises(RequestError):
        guard.check(common_pb2.Fence())
    assert guard.highest == fence(2)


async def test_a_repeated_change_answers_without_running_again() -> None:
    once, runs = Once(), []

    async def change() -> int:
        runs.append(1)
        return len(runs)

    assert [await once.run("a", change), await once.run("a", change)] == [1, 1]
    assert await once.run("b", change) == 2
    assert await once.run("", change) == 3
    assert await once.run("", change) == 4


async def test_a_caller_that_gave_up_gets_the_first_answer_when_it_asks_again() -> None:
    once, release, runs = Once(), asyncio.Event(), []

    async def change() -> str:
        runs.append(1)
        await release.wait()
        return "done"

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(once.run("a", change), timeout=0.02)
    release.set()
    assert await once.run("a", change) == "done"
    assert len(runs) == 1


async def test_an_error_is_not_an_answer() -> None:
    once, fails = Once(), [True]

    async def change() -> str:
        if fails.pop() if fails else False:
            raise DeadlineError("late")
        return "done"

    with pytest.raises(DeadlineError):
        await once.run("a", change)
    assert await once.run("a", change) == "done"
