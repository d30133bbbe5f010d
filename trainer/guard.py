"""The memory of the last change, and of the checkpoint being written: a repeated request does not do it again.

Lives on the event loop of the rank that speaks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from crescendo.proto.v1 import trainer_pb2

A = TypeVar("A")


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


class Save:
    """A checkpoint being written. begun: set when other calls may go on; told: it failed, and a caller knows."""

    task: asyncio.Task[trainer_pb2.SaveCheckpointResponse]

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.told = False

    async def until_begun(self) -> None:
        """Raises what stopped it before that."""
        waiting = asyncio.create_task(self.begun.wait())
        try:
            await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if not self.begun.is_set():
                await asyncio.shield(self.task)
        finally:
            waiting.cancel()
