"""What Megatron-Core needs to run without CUDA.

Megatron asks `torch.cuda.current_device()` where to put buffers and keeps a tracker of CUDA random states for
dropout and initialization. On CPU the first answers the CPU device and the second does nothing: our models
have no dropout and their weights are always loaded. Called by parallel.py before the model is built; `remove`
undoes it, so that a test process can use torch as it was.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random

_original_current_device = torch.cuda.current_device


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


def install() -> None:
    """Puts the stand-ins in place."""
    # Megatron warns at each tensor-parallel layer when this is unset; without CUDA it means nothing.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    torch.cuda.current_device = _cpu_device  # type: ignore[assignment]
    megatron_random._CUDA_RNG_STATE_TRACKER = _NoRandomStates()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True


def remove() -> None:
    """Restores what `install` replaced."""
    torch.cuda.current_device = _original_current_device
    megatron_random._CUDA_RNG_STATE_TRACKER = None
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
