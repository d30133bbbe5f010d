"""The trainer's side of the device lease: letting go, taking again, and the proof.

    idle           the CPU is the shared device: nothing moves, but nothing computes either, which the process's CPU
                   seconds show
    offload_state  gradients and optimizer state go to pinned host memory, so that engines have room for their weights
    offload        the weights go too

What went to the host comes back with `acquire`. The buffers keep their identity while away: only their storage is
emptied, so that every view of them (parameters, gradients) is whole again. On CPU moving frees nothing that anybody
waits for, yet works the same, and the accounts of it are what tests check.
"""

import resource
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from crescendo.common.device_memory import device_memory
from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2

METHODS = ("idle", "offload_state", "offload")


def cpu_seconds() -> float:
    """CPU time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Device:
    """Whether the trainer may compute, and what it holds."""

    def __init__(self, device: torch.device, beside_s: Callable[[], float] = lambda: 0.0) -> None:
        """beside_s: CPU seconds of this process that are no use of the device, such as of writing files."""
        self._device = device
        self._beside_s = beside_s
        self._method = ""
        self._away: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._peak_bytes = 0
        self._weights: set[int] = set()
        self.still = threading.RLock()  # held by whoever reads weights in another thread: they do not move meanwhile

    def manage(self, weights: Sequence[torch.Tensor]) -> None:
        """Says which tensors the model's weights are."""
        self._weights = {_storage(weight) for weight in weights}

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether it is a view of a weight."""
        return _storage(tensor) in self._weights

    def find(self, tensor: torch.Tensor) -> torch.Tensor:
        """A weight's values, or a view's of one: where they are, or while they are away their copy on the host."""
        for buffer, host in self._away.values():
            if _storage(buffer) == _storage(tensor):
                return host.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return tensor

    @property
    def state(self) -> common_pb2.DeviceState.ValueType:
        """RESIDENT or RELEASED; RESIDENT too while only the state is away: weights can be published."""
        released = self._method not in ("", "offload_state")
        return common_pb2.DEVICE_STATE_RELEASED if released else common_pb2.DEVICE_STATE_RESIDENT

    @property
    def away_bytes(self) -> int:
        """What lies on the host."""
        return sum(_num_bytes(host) for _, host in self._away.values())

    def require(self, *, weights_only: bool = False) -> None:
        """Raises RequestError while the device, or what is needed of it, is let go."""
        if self._method and not (weights_only and self._method == "offload_state"):
            raise RequestError(
                f"the trainer has let go of its device ({self._method}).",
                field="device",
                fix="Call AcquireDevice first.",
            )

    def release(
        self, method: str, buffers: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] = ()
    ) -> common_pb2.DeviceReport:
        """Lets go; empty method chooses by device. Repeating it changes nothing.

        buffers: all that is held; weights: those of them that offload_state keeps. Raises RequestError for a method
        that there is not.
        """
        with self.still:
            return self._release(method, buffers, weights)

    def _release(
        self, method: str, buffers: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> common_pb2.DeviceReport:
        began = time.perf_counter()
        wanted = method or ("idle" if self._device.type == "cpu" else "offload")
        if wanted not in METHODS:
            raise RequestError(f"method is {method!r}; it must be one of {', '.join(METHODS)}.", field="method")
        if wanted != "idle":
            kept = {_address(weight) for weight in weights} if wanted == "offload_state" else set()
            self._offload([buffer for buffer in buffers if _address(buffer) not in kept])
        if not (wanted == "offload_state" and self._method):
            self._method = wanted
        return self.report(time.perf_counter() - began)

    def acquire(self) -> common_pb2.DeviceReport:
        """Takes the device again; repeating it changes nothing."""
        began = time.perf_counter()
        with self.still:
            for buffer, host in self._away.values():
                buffer.untyped_storage().resize_(_num_bytes(host))
                buffer.copy_(host, non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._away.clear()
        self._method = ""
        return self.report(time.perf_counter() - began)

    def report(self, seconds: float = 0.0) -> common_pb2.DeviceReport:
        """What is held now: device memory on a GPU, the resident set on CPU."""
        on_cpu = self._device.type == "cpu"
        report = common_pb2.DeviceReport(
            state=self.state,
            method=self._method or ("idle" if on_cpu else "offload"),
            held_bytes=int(psutil.Process().memory_info().rss if on_cpu else torch.cuda.memory_reserved(self._device)),
            cpu_seconds=cpu_seconds() - self._beside_s(),
            seconds=seconds,
        )
        if not on_cpu:
            found = device_memory()
            report.free_bytes, report.total_bytes = found.free_bytes, found.total_bytes
            # Steps of this run need what steps before them needed; before the first one, what was moved away.
            self._peak_bytes = max(self._peak_bytes, int(torch.cuda.max_memory_reserved(self._device)))
            report.needed_bytes = max(0, max(self._peak_bytes, self.away_bytes) - report.held_bytes)
        return report

    def _offload(self, buffers: Sequence[torch.Tensor]) -> None:
        on_gpu = self._device.type == "cuda"
        moved = []
        for buffer in buffers:
            if id(buffer) in self._away or not buffer.untyped_storage().nbytes():
                continue
            host = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu", pin_memory=on_gpu)
            host.copy_(buffer, non_blocking=True)
            self._away[id(buffer)] = (buffer, host)
            moved.append(buffer)
        if on_gpu:
            torch.cuda.synchronize(self._device)
        for buffer in moved:
            buffer.untyped_storage().resize_(0)
        if on_gpu:
            torch.cuda.empty_cache()


def _address(buffer: torch.Tensor) -> int:
    return buffer.untyped_storage().data_ptr()


def _storage(tensor: torch.Tensor) -> int:
    """What stays the same while the storage is emptied and filled again."""
    return int(tensor.untyped_storage()._cdata)


def _num_bytes(host: torch.Tensor) -> int:
    return host.numel() * host.element_size()
