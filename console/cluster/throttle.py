"""Limits attempts to sign in: each asks the API server for a review. Lives in one replica's memory."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

MAX_FAILURES: Final = 10
WINDOW_S: Final = 60.0
MAX_ADDRESSES: Final = 1024


class Throttle:
    """Failed attempts by address within a window. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until the address may try again; 0: now."""
        failures = self._failures.get(address, deque())
        while failures and failures[0] <= self._clock() - WINDOW_S:
            failures.popleft()
        return failures[0] + WINDOW_S - self._clock() if len(failures) >= MAX_FAILURES else 0.0

    def failed(self, address: str) -> None:
        """Counts a failure; the address that failed longest ago is forgotten when there are too many."""
        self._failures.setdefault(address, deque(maxlen=MAX_FAILURES)).append(self._clock())
        self._failures.move_to_end(address)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
