"""Which job is looked at next: one at a time each, several at once, again when due.

`add` from an event makes a job due now; a job under work that is added again is looked at once more afterwards. A
failure is tried again with back-off, per job, and holds up no other one.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from crescendo.common.errors import CrescendoError

log = logging.getLogger(__name__)

Key = tuple[str, str]
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0


class WorkQueue:
    """Runs `work(namespace, name) -> seconds until due again (0: forget it)` for every job that was added."""

    def __init__(self, work: Callable[[str, str], Awaitable[float]], workers: int = 16) -> None:
        self._work = work
        self._workers = workers
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def add(self, namespace: str, name: str, after_s: float = 0.0) -> None:
        """Makes a job due, no later than after_s from now."""
        key = (namespace, name)
        if key in self._busy:
            if after_s == 0.0:
                self._again.add(key)
            return
        when = asyncio.get_running_loop().time() + after_s
        if when < self._due.get(key, float("inf")):
            self._due[key] = when
            heapq.heappush(self._heap, (when, next(self._order), key))
            self._changed.set()

    def __len__(self) -> int:
        return len(self._due) + len(self._busy)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._next()
            self._busy.add(key)
            try:
                again_s = await self._work(*key)
                self._failures.pop(key, None)
            except CrescendoError as error:
                count = self._failures[key] = self._failures.get(key, 0) + 1
                again_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(count - 1, 10))
                log.warning("%s/%s: %s (again in %.0f s)", *key, error, again_s)
            except Exception:
                again_s = LONGEST_BACKOFF_S
                log.exception("%s/%s: the operator's own mistake; other jobs go on (again in %.0f s)", *key, again_s)
            finally:
                self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                again_s = min(again_s, 0.01) or 0.01
            if again_s:
                self.add(*key, after_s=again_s)

    async def _next(self) -> Key:
        while True:
            now = asyncio.get_running_loop().time()
            while self._heap and (self._due.get(self._heap[0][2]) != self._heap[0][0]):
                heapq.heappop(self._heap)  # an earlier time was set since
            if self._heap and self._heap[0][0] <= now:
                key = heapq.heappop(self._heap)[2]
                del self._due[key]
                return key
            wait_s = self._heap[0][0] - now if self._heap else None
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue
