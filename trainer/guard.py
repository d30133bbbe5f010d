"""What a request must pass before it changes anything: its fence, and the memory of the last change.

Lives on the event loop of the rank that speaks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.proto.v1 import common_pb2

A = TypeVar("A")


class FenceGuard:
    """Remembers the highest fence seen; orders by (epoch, counter)."""

    def __init__(self) -> None:
        self.highest = common_pb2.Fence()

    def check(self, fence: common_pb2.Fence) -> None:
        """Raises StaleFenceError for a fence older than one seen, RequestError for none."""
        if fence.epoch <= 0:
            raise RequestError(
                f"fence.epoch is {fence.epoch}; a request that changes state carries a fence with a positive epoch.",
                field="fence",
                fix="Use the fence that the buffer issued.",
            )
        if (fence.epoch, fence.counter) < (self.highest.epoch, self.highest.counter):
            raise StaleFenceError(
                f"fence ({fence.epoch}, {fence.counter}) is older than ({self.highest.epoch}, "
                f"{self.highest.counter}), which was seen already.",
                field="fence",
                fix="Another controller took over, or a lease moved on; stop using the old fence.",
            )
        self.highest.CopyFrom(fence)


class Once:
    """Runs changes one after the other, and the same change only once.

    A caller that gave up waiting does not stop its change; when it asks again with the same key it gets the
    answer of the first time. Only the last change is remembered, and an error is not an answer.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._key = ""
        self._answer: Any = None
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, key: str, change: Callable[[], Awaitable[A]]) -> A:
        """The change's answer. An empty key is never remembered."""
        task = asyncio.create_task(self._ordered(key, change))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        answer: A = await asyncio.shield(task)
        return answer

    async def _ordered(self, key: str, change: Callable[[], Awaitable[A]]) -> A:
        async with self._lock:
            if key and key == self._key:
                remembered: A = self._answer
                return remembered
            answer = await change()
            if key:
                self._key, self._answer = key, answer
            return answer
