"""The trainer's side of the device lease: letting go, taking again, and the proof.

    idle      the CPU is the shared device: nothing moves, but nothing computes either, which the process's CPU
              seconds show
    offload   GPU: weights, gradients and moments go to pinned host memory and their device memory is freed

The buffers keep their identity while away: only their storage is emptied, so that every view of them (parameters,
gradients) is whole again after `acquire`.
"""

import resource
import time
from collections.abc import Sequence

import psutil
import torch

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.megatron.parallel import Layout

METHODS = ("idle", "offload")


def cpu_seconds() -> float:
    """CPU time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Device:
    """Whether the trainer may compute, and what it holds."""

    def __init__(self, at: Layout) -> None:
        self._at = at
        self._method = ""
        self._away: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def state(self) -> common_pb2.DeviceState.ValueType:
        """RESIDENT or RELEASED."""
        return common_pb2.DEVICE_STATE_RELEASED if self._method else common_pb2.DEVICE_STATE_RESIDENT

    def require(self) -> None:
        """Raises RequestError while the device is let go."""
        if self._method:
            raise RequestError(
                f"the trainer has let go of its device ({self._method}).",
                field="device",
                fix="Call AcquireDevice first.",
            )

    def release(self, method: str, buffers: Sequence[torch.Tensor]) -> common_pb2.DeviceReport:
        """Lets go; empty method chooses by device. Repeating it changes nothing. Raises RequestError if impossible."""
        began = time.perf_counter()
        wanted = method or ("idle" if self._at.device.type == "cpu" else "offload")
        if wanted not in METHODS:
            raise RequestError(f"method is {method!r}; it must be one of {', '.join(METHODS)}.", field="method")
        if wanted == "offload" and self._at.device.type == "cpu":
            raise RequestError(
                "method is 'offload'; a trainer on CPU has nowhere to move to.", field="method", fix="Use idle."
            )
        if wanted == "offload" and not self._away:
            self._offload(buffers)
        self._method = wanted
        return self.report(time.perf_counter() - began)

    def acquire(self) -> common_pb2.DeviceReport:
        """Takes the device again; repeating it changes nothing."""
        began = time.perf_counter()
        for buffer, host in self._away:
            buffer.untyped_storage().resize_(host.numel() * host.element_size())
            buffer.copy_(host, non_blocking=True)
        if self._away:
            torch.cuda.synchronize(self._at.device)
        self._away = []
        self._method = ""
        return self.report(time.perf_counter() - began)

    def report(self, seconds: float = 0.0) -> common_pb2.DeviceReport:
        """What is held now: device memory on a GPU, the resident set on CPU."""
        if self._at.device.type == "cpu":
            held = int(psutil.Process().memory_info().rss)
        else:
            held = int(torch.cuda.memory_reserved(self._at.device))
        method = self._method or ("idle" if self._at.device.type == "cpu" else "offload")
        return common_pb2.DeviceReport(
            state=self.state, method=method, held_bytes=held, cpu_seconds=cpu_seconds(), seconds=seconds
        )

    def _offload(self, buffers: Sequence[torch.Tensor]) -> None:
        seen: set[int] = set()
        for buffer in buffers:
            if buffer.data_ptr() in seen:
                continue
            seen.add(buffer.data_ptr())
            host = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu", pin_memory=True)
            host.copy_(buffer, non_blocking=True)
            self._away.append((buffer, host))
        torch.cuda.synchronize(self._at.device)
        for buffer, _ in self._away:
            buffer.untyped_storage().resize_(0)
        torch.cuda.empty_cache()
