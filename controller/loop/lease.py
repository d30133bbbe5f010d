"""The lease of the device set, driven: calls to services, proofs from their reports, fences.

What may happen, when, and which way of letting go is taken, is common/leases.py; this file asks, waits and tells. Each
move that gives the devices to the other side takes a new fencing token, so that a holder which slept through its loss
is refused everywhere. A proof that fails is an event, and the next stronger method is tried; when there is none, a
worker that still holds device memory is lost (and the run recovers), and one that merely computes is an event.

Where trainer and engines have devices of their own (`disaggregated`) nothing changes hands: the states and their fences
are the same, since an iteration is synchronous, but nobody lets go, and nobody has to prove it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from crescendo.buffer import ExperienceBuffer
from crescendo.common.errors import WorkerLostError
from crescendo.common.leases import Holder, LeaseMachine, LeaseState, Methods, Proof, Reading, Share, Verdict
from crescendo.controller.launch import Worker
from crescendo.controller.loop.board import Board
from crescendo.proto.v1 import common_pb2, rollout_pb2, trainer_pb2

PROOF_INTERVAL_S = 0.02
PROOF_DEADLINE_S = 5.0
CALL_S = 120.0

Release = Callable[[str], Awaitable[common_pb2.DeviceReport]]


class DeviceLease:
    """The state machine, the current fence, and the proofs."""

    def __init__(self, buffer: ExperienceBuffer, board: Board, *, on_gpu: bool, apart: bool = False) -> None:
        """apart: trainer and engines have devices of their own."""
        self._apart = apart
        self._buffer = buffer
        self._board = board
        self._on_gpu = on_gpu
        self._device = "gpu" if on_gpu else "cpu"
        self._machine = LeaseMachine(time.monotonic())
        self._methods: dict[str, Methods] = {}
        self._engine_need_bytes = 0
        self._trainer_need_bytes = 0
        self.fence = common_pb2.Fence()

    @property
    def state(self) -> LeaseState:
        """Who holds the devices."""
        return self._machine.state

    @property
    def seconds(self) -> dict[str, float]:
        """Spent in each state that was left."""
        return self._machine.seconds

    async def take_over(self) -> None:
        """Takes the run over: a new epoch; every older fence is void. The trainer holds the devices.

        Raises StaleFenceError when another controller has taken it over from this one.
        """
        self.fence = await self._buffer.acquire_epoch(self.fence if self.fence.epoch else None)
        self._machine.restart(time.monotonic())
        self._show()

    async def confirm(self) -> None:
        """Raises StaleFenceError when another controller has taken the run over; before files that nothing fences."""
        self.fence = await self._buffer.advance_fence(self.fence)
        self._show()

    async def move(self, to: LeaseState) -> None:
        """Moves to the next state, with a new fence where the devices change hands; any other order is a bug."""
        if self._machine.move(to, time.monotonic()):
            self.fence = await self._buffer.advance_fence(self.fence)
        self._show()

    def _show(self) -> None:
        self._board.status.lease_state = self.state
        self._board.status.fence.CopyFrom(self.fence)

    # The trainer --------------------------------------------------------------------------------------

    async def shed_trainer(self, trainer: Worker) -> None:
        """On GPUs: all but the trainer's weights goes to the host, so that engines can take theirs."""
        if self._on_gpu and not self._apart:
            request = trainer_pb2.TrainerReleaseDeviceRequest(fence=self.fence, method="offload_state")
            await trainer.call("ReleaseDevice", request, timeout_s=CALL_S)

    async def release_trainer(self, trainer: Worker) -> None:
        """The trainer lets go of the devices, and it is proven; raises WorkerLostError when it keeps memory."""

        async def release(method: str) -> common_pb2.DeviceReport:
            request = trainer_pb2.TrainerReleaseDeviceRequest(fence=self.fence, method=method)
            answer = await trainer.call("ReleaseDevice", request, timeout_s=CALL_S)
            self._trainer_need_bytes = answer.device.needed_bytes
            report: common_pb2.DeviceReport = answer.device
            return report

        await self._let_go(Holder.TRAINER, trainer, release, self._engine_need_bytes)

    async def acquire_trainer(self, trainer: Worker) -> None:
        """The trainer takes the devices."""
        self._machine.require(Holder.TRAINER, Share.ALL)
        if self._apart:
            return
        request = trainer_pb2.TrainerAcquireDeviceRequest(fence=self.fence)
        await trainer.call("AcquireDevice", request, timeout_s=CALL_S)

    # The engines --------------------------------------------------------------------------------------

    async def release_engines(self, engines: list[Worker]) -> None:
        """Every engine lets go of the devices, and it is proven."""
        await asyncio.gather(*(self._release_engine(engine) for engine in engines))

    async def _release_engine(self, engine: Worker) -> None:
        async def release(method: str) -> common_pb2.DeviceReport:
            request = rollout_pb2.RolloutReleaseDeviceRequest(fence=self.fence, method=method)
            answer = await engine.call("ReleaseDevice", request, timeout_s=CALL_S)
            self._engine_need_bytes = max(self._engine_need_bytes, answer.device.needed_bytes)
            report: common_pb2.DeviceReport = answer.device
            return report

        await self._let_go(Holder.ENGINES, engine, release, self._trainer_need_bytes)

    async def acquire_engines(self, engines: list[Worker], share: Share = Share.ALL) -> None:
        """Every engine takes its device memory: its weights' part, or all."""
        if self._apart:
            return
        request = rollout_pb2.RolloutAcquireDeviceRequest(fence=self.fence, share=share)
        await asyncio.gather(*(engine.call("AcquireDevice", request, timeout_s=CALL_S) for engine in engines))

    def starts_whole(self, engine: Worker) -> bool:
        """Whether an engine takes weights and cache at once: it was ended to let go, so that it starts anew."""
        return engine.status.device.method == "restart"

    # Proofs -------------------------------------------------------------------------------------------

    async def _let_go(self, holder: Holder, worker: Worker, release: Release, need_bytes: int) -> None:
        """Releases and proves, by stronger methods if it must be."""
        if self._apart:
            return
        methods = self._methods.setdefault(worker.worker_id, Methods(holder, self._device))
        before = _reading(worker.status.device)
        way: str | None = methods.choose(before.total_bytes, need_bytes)
        while way is not None:
            await release(way)
            proof = Proof(need_bytes, time.monotonic() + PROOF_DEADLINE_S)
            verdict, last = await self._prove(worker, proof)
            methods.learn(way, last)
            if verdict is Verdict.PROVEN:
                return
            stronger = methods.stronger(way)
            self._board.event(
                "lease.unproven",
                f"{worker.worker_id} released the devices by {way}, but {proof.shortfall(last)}"
                + (f"; {stronger} is tried" if stronger else ""),
                severity="warning",
                method=way,
                free_bytes=last.free_bytes or 0,
                needed_bytes=need_bytes,
            )
            way = stronger
        if self._on_gpu:
            message = f"{worker.worker_id} does not let go of its device"
            worker.lose(message)
            raise WorkerLostError(f"{message}.", fix="It is replaced; see docs/operations.md if that repeats.")

    async def _prove(self, worker: Worker, proof: Proof) -> tuple[Verdict, Reading]:
        """Reads until the proof is decided."""
        reading = _reading((await worker.refresh(CALL_S)).device)
        while (verdict := proof.observe(reading)) is Verdict.WAIT:
            await asyncio.sleep(PROOF_INTERVAL_S)
            reading = _reading((await worker.refresh(CALL_S)).device)
        return verdict, reading


def _reading(device: common_pb2.DeviceReport) -> Reading:
    free = device.free_bytes if device.total_bytes else None
    return Reading(time.monotonic(), device.cpu_seconds, free, device.total_bytes)
