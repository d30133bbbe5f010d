"""The lease of the device, seen from the engine: let go, take back, and say so.

On a CPU the cores are the device: `idle` stops the engine's thread between two steps, and the process's CPU
seconds prove that it stands still. On a GPU `sleep` discards weights and cache, and `restart` ends the engine in this
process; it starts again with random weights. It is taken back in two parts: weights first, while the trainer still
holds its own, then the cache. Used by the service on the event loop; not while requests run.
"""

import time

import psutil

from crescendo.common.device_memory import device_memory
from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.thread import EngineThread

METHODS = ("idle", "sleep", "restart")
SHARES = ("", "weights", "all")


class DeviceLease:
    """Whether this engine holds its device."""

    def __init__(self, engine: EngineThread, device: str, deadline_s: float) -> None:
        self._engine = engine
        self._device = device
        self._deadline_s = deadline_s
        self._process = psutil.Process()
        self._released_by = ""
        self._without_cache = False
        self._used_bytes = 0
        self._seconds = 0.0

    @property
    def released(self) -> bool:
        """Whether somebody else may use the device."""
        return bool(self._released_by)

    @property
    def may_compute(self) -> bool:
        """Whether weights and cache are here."""
        return not self._released_by and not self._without_cache

    async def release(self, method: str) -> bool:
        """Lets go; returns whether the weights are lost by it. Repeating it changes nothing.

        A stronger method than the one that it was released by is carried out. Raises RequestError for a method that
        the device does not have.
        """
        if method not in METHODS or (method == "sleep" and self._device == "cpu"):
            raise RequestError(
                f"method is {method!r}; on {self._device} it must be "
                f"{'idle or restart' if self._device == 'cpu' else ', '.join(METHODS)}.",
                field="method",
            )
        if self._released_by and METHODS.index(method) <= METHODS.index(self._released_by):
            return False
        started_s = time.perf_counter()
        before = self._free_bytes()
        if method != "idle":
            await self._engine.call(lambda engine: engine.release(method), self._deadline_s)
        self._engine.hold()
        self._used_bytes = max(self._used_bytes, self._free_bytes() - before)
        self._released_by, self._without_cache = method, False
        self._seconds = time.perf_counter() - started_s
        return method != "idle"

    async def acquire(self, share: str = "all") -> None:
        """Takes the device back, or its weights' part. Repeating it changes nothing. Raises RequestError."""
        if share not in SHARES:
            raise RequestError(f"share is {share!r}; it must be weights or all.", field="share")
        wants_all = share != "weights"
        if not self._released_by and not (self._without_cache and wants_all):
            return
        started_s = time.perf_counter()
        if self._released_by not in ("", "idle") or self._without_cache:
            await self._engine.call(lambda engine: engine.acquire(cache=wants_all), self._deadline_s)
        # Without a cache nothing can be stepped, though weights can be loaded.
        self._without_cache = not wants_all
        if wants_all:
            self._engine.proceed()
        self._released_by = ""
        self._seconds = time.perf_counter() - started_s

    def report(self) -> common_pb2.DeviceReport:
        """The state now, with the CPU seconds of this process and its children."""
        used = self._process.cpu_times()
        report = common_pb2.DeviceReport(
            state=common_pb2.DEVICE_STATE_RELEASED if self._released_by else common_pb2.DEVICE_STATE_RESIDENT,
            method=self._released_by,
            held_bytes=self._process.memory_info().rss,
            cpu_seconds=used.user + used.system,
            seconds=self._seconds,
        )
        if self._device != "cpu":
            found = device_memory()
            report.free_bytes, report.total_bytes = found.free_bytes, found.total_bytes
            report.needed_bytes = self._used_bytes if self._released_by else 0
        return report

    def _free_bytes(self) -> int:
        return device_memory().free_bytes if self._device != "cpu" else 0
