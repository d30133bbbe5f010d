"""The lease of the device, seen from the engine: let go, take back, and say so.

On a CPU the cores are the device: `idle` stops the engine's thread between two steps, and the process's CPU
seconds prove that it stands still. On a GPU `sleep` discards weights and cache, and `restart` ends the engine
in this process. Used by the service on the event loop; not while requests run.
"""

import time

import psutil

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.thread import EngineThread

METHODS = ("idle", "sleep", "restart")


class DeviceLease:
    """Whether this engine holds its device."""

    def __init__(self, engine: EngineThread, device: str, deadline_s: float) -> None:
        self._engine = engine
        self._device = device
        self._deadline_s = deadline_s
        self._process = psutil.Process()
        self._released_by = ""
        self._seconds = 0.0

    @property
    def released(self) -> bool:
        """Whether somebody else may use the device."""
        return bool(self._released_by)

    async def release(self, method: str) -> bool:
        """Lets go; returns whether the weights are lost by it. Repeating it changes nothing.

        Raises RequestError for a method that the device does not have.
        """
        if method not in METHODS or (method == "sleep" and self._device == "cpu"):
            raise RequestError(
                f"method is {method!r}; on {self._device} it must be "
                f"{'idle or restart' if self._device == 'cpu' else ', '.join(METHODS)}.",
                field="method",
            )
        if self._released_by:
            return False
        started_s = time.perf_counter()
        if method != "idle":
            await self._engine.call(lambda engine: engine.release(method), self._deadline_s)
        self._engine.hold()
        self._released_by = method
        self._seconds = time.perf_counter() - started_s
        return method != "idle"

    async def acquire(self) -> None:
        """Takes the device back. Repeating it changes nothing."""
        if not self._released_by:
            return
        started_s = time.perf_counter()
        if self._released_by != "idle":
            await self._engine.call(lambda engine: engine.acquire(), self._deadline_s)
        self._engine.proceed()
        self._released_by = ""
        self._seconds = time.perf_counter() - started_s

    def report(self) -> common_pb2.DeviceReport:
        """The state now, with the CPU seconds of this process and its children."""
        used = self._process.cpu_times()
        return common_pb2.DeviceReport(
            state=common_pb2.DEVICE_STATE_RELEASED if self._released_by else common_pb2.DEVICE_STATE_RESIDENT,
            method=self._released_by,
            held_bytes=self._process.memory_info().rss,
            cpu_seconds=used.user + used.system,
            seconds=self._seconds,
        )
