"""The clock that leases expire by: the controller's monotonic clock, kept in the buffer.

The controller's calls of `expire_leases` move it; nobody else does. So a wall clock that jumps expires
nothing, and time in which the controller or the server was away does not count against the engines
(docs/decisions/0004-lease-clock.md). One step adds at most MAX_STEP_S: leases may live longer than asked, and
at most MAX_STEP_S shorter.
"""

from collections.abc import Callable

MAX_STEP_S = 5.0


class LeaseClock:
    """Counts from the value that the buffer knows by the caller's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known_ms: int | None = None
        self._at_s = 0.0

    def set(self, clock_ms: int) -> None:
        """The buffer's value, now."""
        self._known_ms = clock_ms
        self._at_s = self._monotonic()

    def forget(self) -> None:
        """The server was away: what passed since does not count."""
        self._known_ms = None

    def now_ms(self) -> int:
        """What the buffer's clock should show now; 0 when the buffer has to be asked first."""
        if self._known_ms is None:
            return 0
        elapsed_s = min(self._monotonic() - self._at_s, MAX_STEP_S)
        return self._known_ms + int(1000 * max(elapsed_s, 0.0))
