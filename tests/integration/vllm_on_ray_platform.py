"""The class of vllm_on_ray.py, apart because naming its base loads vLLM."""

from vllm.platforms.cpu import CpuPlatform


class CountedCpuPlatform(CpuPlatform):  # type: ignore[misc]
    """Computes on cores; Ray gives each worker a share of a GPU that does not exist."""

    ray_device_key = "GPU"
