"""What Megatron-Core needs to run without CUDA.

Megatron asks `torch.cuda.current_device()` where to put buffers, waits for the device between pipeline stages and
keeps CUDA random states for dropout, initialization and recomputation. On CPU the first answers the CPU device and
the others do nothing: our models have no dropout and their weights are always loaded. Called by parallel.py before
the model is built; `remove` undoes it, so that a test process can use torch as it was. `CudaMeansCpu` is for the
pipeline schedule, which names the device "cuda" in full.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

_original_current_device = torch.cuda.current_device
_original_synchronize = torch.cuda.synchronize
_original_random = {name: getattr(megatron_random, name) for name in ("_get_cuda_rng_state", "_set_cuda_rng_state")}


class CudaMeansCpu(TorchFunctionMode):
    """While it is entered, tensors that are asked for on "cuda" are made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if settings.get("device") == "cuda":
            settings["device"] = "cpu"
        return func(*args, **settings)


class _NoRandomStates:
    """Stands in for Megatron's CudaRNGStatesTracker."""

    def is_initialized(self) -> bool:
        return True

    def reset(self) -> None:
        return None

    def get_states(self) -> dict[str, Any]:
        return {}

    def set_states(self, states: dict[str, Any]) -> None:
        return None

    def add(self, name: str, seed: int) -> None:
        return None

    @contextmanager
    def fork(self, name: str = "") -> Iterator[None]:
        yield


def _cpu_device() -> torch.device:
    return torch.device("cpu")


def _nothing(*_: Any, **__: Any) -> None:
    return None


def install() -> None:
    """Puts the stand-ins in place."""
    # Megatron warns at each tensor-parallel layer when this is unset; without CUDA it means nothing.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    torch.cuda.current_device = _cpu_device  # type: ignore[assignment]
    torch.cuda.synchronize = _nothing
    megatron_random._CUDA_RNG_STATE_TRACKER = _NoRandomStates()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    for name in _original_random:
        setattr(megatron_random, name, _nothing)


def remove() -> None:
    """Restores what `install` replaced."""
    torch.cuda.current_device = _original_current_device
    torch.cuda.synchronize = _original_synchronize
    megatron_random._CUDA_RNG_STATE_TRACKER = None
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    for name, original in _original_random.items():
        setattr(megatron_random, name, original)
