"""The lease of the device set: one holder at a time, and proof that the former holder let go.

    TRAIN -> OFFLOADING -> PUBLISHING -> ROLLOUT -> RECLAIMING -> TRAIN

Each move takes a new fencing token, so that a holder which slept through its loss is refused everywhere.
In PUBLISHING both sides hold their weights. On CPU, where the cores are the shared device, the proof is that
the former holder's CPU time stands still. On GPUs the services report what they still hold, but the controller
does not measure free device memory yet.
"""

import asyncio
import time
from enum import StrEnum

from crescendo.buffer import ExperienceBuffer
from crescendo.common.errors import InternalError
from crescendo.controller.launch import Worker
from crescendo.controller.loop.board import Board
from crescendo.proto.v1 import common_pb2, rollout_pb2, trainer_pb2

PROOF_INTERVAL_S = 0.02
PROOF_BUSY_SHARE = 0.5  # of one core, over the interval; clocks tick in hundredths of a second
PROOF_DEADLINE_S = 5.0
CALL_S = 120.0


class LeaseState(StrEnum):
    """Who holds the devices, or is about to."""

    TRAIN = "train"
    OFFLOADING = "offloading"
    PUBLISHING = "publishing"
    ROLLOUT = "rollout"
    RECLAIMING = "reclaiming"


NEXT: dict[LeaseState, LeaseState] = {
    LeaseState.TRAIN: LeaseState.OFFLOADING,
    LeaseState.OFFLOADING: LeaseState.PUBLISHING,
    LeaseState.PUBLISHING: LeaseState.ROLLOUT,
    LeaseState.ROLLOUT: LeaseState.RECLAIMING,
    LeaseState.RECLAIMING: LeaseState.TRAIN,
}


class DeviceLease:
    """The state machine, the current fence, and the seconds spent in each state."""

    def __init__(self, buffer: ExperienceBuffer, board: Board, *, on_gpu: bool) -> None:
        self._buffer = buffer
        self._board = board
        self._on_gpu = on_gpu
        self.state = LeaseState.TRAIN
        self.fence = common_pb2.Fence()
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    async def take_over(self) -> None:
        """Takes the run over: a new epoch; every older fence is void. The trainer holds the devices.

        Raises StaleFenceError when another controller has taken it over from this one.
        """
        self.fence = await self._buffer.acquire_epoch(self.fence if self.fence.epoch else None)
        self.state = LeaseState.TRAIN
        self._since = time.monotonic()
        self._show()

    async def confirm(self) -> None:
        """Raises StaleFenceError when another controller has taken the run over; before files that nothing fences."""
        self.fence = await self._buffer.advance_fence(self.fence)
        self._show()

    async def move(self, to: LeaseState) -> None:
        """Moves to the next state with a new fence; any other order is a bug."""
        if NEXT[self.state] != to:
            raise InternalError(f"the lease cannot move from {self.state} to {to}.")
        now = time.monotonic()
        self.seconds[self.state] = self.seconds.get(self.state, 0.0) + now - self._since
        self._since = now
        self.state = to
        if to in (LeaseState.TRAIN, LeaseState.OFFLOADING, LeaseState.ROLLOUT):
            self.fence = await self._buffer.advance_fence(self.fence)
        self._show()

    def _show(self) -> None:
        self._board.status.lease_state = self.state
        self._board.status.fence.CopyFrom(self.fence)

    async def release_trainer(self, trainer: Worker) -> None:
        """The trainer lets go of the devices, and it is proven."""
        method = "offload" if self._on_gpu else "idle"
        request = trainer_pb2.TrainerReleaseDeviceRequest(fence=self.fence, method=method)
        await trainer.call("ReleaseDevice", request, timeout_s=CALL_S)
        await self._prove(trainer)

    async def acquire_trainer(self, trainer: Worker) -> None:
        """The trainer takes the devices."""
        request = trainer_pb2.TrainerAcquireDeviceRequest(fence=self.fence)
        await trainer.call("AcquireDevice", request, timeout_s=CALL_S)

    async def release_engines(self, engines: list[Worker]) -> None:
        """Every engine lets go of the devices, and it is proven."""
        method = "sleep" if self._on_gpu else "idle"
        request = rollout_pb2.RolloutReleaseDeviceRequest(fence=self.fence, method=method)
        await asyncio.gather(*(engine.call("ReleaseDevice", request, timeout_s=CALL_S) for engine in engines))
        await asyncio.gather(*(self._prove(engine) for engine in engines))

    async def acquire_engines(self, engines: list[Worker]) -> None:
        """Every engine takes its device memory, without a cache yet."""
        request = rollout_pb2.RolloutAcquireDeviceRequest(fence=self.fence)
        await asyncio.gather(*(engine.call("AcquireDevice", request, timeout_s=CALL_S) for engine in engines))

    async def _prove(self, worker: Worker) -> None:
        """Waits until a released worker's CPU time stands still; a failed proof is an event, not a hang."""
        deadline = time.monotonic() + PROOF_DEADLINE_S
        before = (await worker.refresh(CALL_S)).device.cpu_seconds
        while True:
            begun = time.monotonic()
            await asyncio.sleep(PROOF_INTERVAL_S)
            after = (await worker.refresh(CALL_S)).device.cpu_seconds
            if after - before <= PROOF_BUSY_SHARE * (time.monotonic() - begun) + 0.01:
                return
            if time.monotonic() > deadline:
                message = f"{worker.worker_id} released the devices but still computes."
                self._board.event("lease.unproven", message, severity="warning", cpu_seconds=after - before)
                return
            before = after
