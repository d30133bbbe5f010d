"""What people asked of the run, and how the loop notices: flags that are read between and within phases."""

import asyncio
from collections.abc import Sequence

from crescendo.controller.loop.quarantine import Quarantine


class Control:
    """Verbs set it, the loop reads it. Lives on the controller's event loop."""

    def __init__(self, quarantine: Quarantine | None = None) -> None:
        self.stop_requested = False
        self.commit_on_stop = True
        self.promote_to: str | None = None  # a stage; empty: the next, or past the last
        self.commit_requested = False
        self.drain_requested = False
        self.drain_key = ""  # of the newest request, which may be sent again
        self.quarantine = quarantine or Quarantine()  # engines that nobody wants back
        self.num_engines: int | None = None  # as many as people want; None: as the run file says
        self.fixed_engines = ""  # why their number cannot change, if so
        self._running = asyncio.Event()
        self._running.set()

    @property
    def paused(self) -> bool:
        """Whether the run should stand still."""
        return not self._running.is_set()

    @property
    def wants_commit(self) -> bool:
        """Whether people want a checkpoint at the next point where one can be made."""
        return self.stop_requested or self.commit_requested or self.drain_requested

    def committed(self) -> None:
        """A checkpoint was made; a drained run stands still from here on."""
        self.commit_requested = False
        if self.drain_requested:
            self.drain_requested = False
            self.pause()

    def still_wants(self, later: Sequence[str]) -> bool:
        """Whether the stage that people want follows the present one; forgets it when the run is there already."""
        if self.promote_to and self.promote_to not in later:
            self.promote_to = None
        return self.promote_to is not None

    def entered(self, later: Sequence[str]) -> None:
        """A stage was left for good, and these follow the present one: only one of these is still to come."""
        if self.promote_to not in later:
            self.promote_to = None

    @property
    def interrupting(self) -> bool:
        """Whether a phase that can be parked should be."""
        return self.stop_requested or self.paused

    def pause(self) -> None:
        """Stands still at the next safe point; running responses are parked."""
        self._running.clear()

    def resume(self) -> None:
        """Goes on."""
        self._running.set()

    def stop(self, *, commit: bool) -> None:
        """Ends the run at the next safe point; it can be resumed later."""
        self.stop_requested = True
        self.commit_on_stop = commit
        self._running.set()

    async def wait_while_paused(self) -> None:
        """Returns when the run may go on (a pause has no deadline: a person ends it)."""
        await self._running.wait()
