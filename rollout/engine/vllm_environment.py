"""Environment variables that vLLM and OpenMP read once; set before vLLM or torch is imported.

Reasons, measured on two cores: spinning OpenMP threads of one engine slow the other down tenfold
(GOMP_SPINCOUNT); helpers compile for seconds at the first batch even in eager mode (TORCHDYNAMO_DISABLE);
an engine core in this process starts faster and leaves no children (VLLM_ENABLE_V1_MULTIPROCESSING).
"""

import os

from crescendo.rollout.engine.settings import EngineSettings

# Not among those that vLLM copies to workers in Ray by itself.
COPIED = ("TORCHDYNAMO_DISABLE", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "DO_NOT_TRACK")


def prepare_environment(settings: EngineSettings) -> None:
    """Sets what is not set already; the operator's own values win, but for where workers live."""
    if settings.bundles:
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, settings.bundles))
        os.environ["VLLM_RAY_PER_WORKER_GPUS"] = str(settings.device_share)
        os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join(COPIED)
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if settings.device == "cpu":
        threads = settings.threads or len(os.sched_getaffinity(0))
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "GOMP_SPINCOUNT": "0",
            "KMP_BLOCKTIME": "0",
            "CUDA_VISIBLE_DEVICES": "",
        }
    if settings.enforce_eager:
        variables["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in variables.items():
        os.environ.setdefault(name, value)
