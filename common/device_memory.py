"""Free memory of the GPUs that this process sees, from NVML: what every process on them took, not this one alone.

NVML numbers GPUs of the machine; CUDA_VISIBLE_DEVICES says which of them are this process's, by number or by UUID.
Used by trainer and rollout for their DeviceReport. The library is loaded at the first call.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crescendo.common.errors import EnvironmentProblem

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of the GPU with the least free memory of those asked for."""

    free_bytes: int
    total_bytes: int


class Nvml(Protocol):
    """What is used of NVML's Python binding (nvidia-ml-py)."""

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...


def device_memory(visible: str | None = None, nvml: Nvml | None = None) -> DeviceMemory:
    """Of the GPUs that CUDA_VISIBLE_DEVICES names (visible: in its place), all without it.

    Raises EnvironmentProblem when there is no driver, or a GPU that is named does not exist.
    """
    names = visible if visible is not None else os.environ.get(VISIBLE)
    library = nvml or _library()
    try:
        library.nvmlInit()
        handles = _handles(library, names.split(",") if names is not None else None)
        found = [library.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    except Exception as error:
        # NVMLError has a subclass for each code, made when the binding is loaded.
        if type(error).__module__ != "pynvml":
            raise
        raise EnvironmentProblem(
            f"the GPU's memory cannot be read: {error}.", field=VISIBLE, fix="See nvidia-smi on that machine."
        ) from None
    if not found:
        raise EnvironmentProblem(
            f"{VISIBLE} is {names!r}: there is no GPU.", field=VISIBLE, fix="Name one, or unset it."
        )
    least = min(found, key=lambda each: int(each.free))
    return DeviceMemory(int(least.free), int(least.total))


def _library() -> Nvml:
    import pynvml

    library: Nvml = pynvml
    return library


def _handles(library: Nvml, names: Sequence[str] | None) -> list[Any]:
    if names is None:
        return [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    wanted = [name.strip() for name in names if name.strip()]
    return [
        library.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else library.nvmlDeviceGetHandleByUUID(name)
        for name in wanted
    ]
