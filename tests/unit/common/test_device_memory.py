"""Free memory by NVML: which GPUs are asked for, and what is said when there are none."""

from types import SimpleNamespace

import pynvml
import pytest

from crescendo.common.device_memory import DeviceMemory, device_memory
from crescendo.common.errors import EnvironmentProblem


class FourGpus:
    """NVML on a machine with four GPUs of 80 bytes."""

    free = (10, 20, 30, 40)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.free)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.free):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(free=self.free[handle], total=80)


@pytest.mark.parametrize(
    ("visible", "free"), [("3", 40), ("2,1", 20), ("GPU-2", 30), (" 1 , GPU-3", 20)], ids=lambda one: str(one)
)
def test_the_fullest_of_the_named_gpus_counts(visible: str, free: int) -> None:
    assert device_memory(visible, FourGpus()) == DeviceMemory(free, 80)


def test_without_names_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_memory(None, FourGpus()) == DeviceMemory(10, 80)


@pytest.mark.parametrize("visible", ["", "9"])
def test_a_gpu_that_is_not_there_is_an_error(visible: str) -> None:
    with pytest.raises(EnvironmentProblem):
        device_memory(visible, FourGpus())
