"""The WorkerStatus that both services answer with."""

import os
import time

import psutil

from crescendo.proto.v1 import common_pb2


def worker_status(worker_id: str, role: str, started_s: float, progress_s: float) -> common_pb2.WorkerStatus:
    """What this process tells about itself. started_s, progress_s: monotonic times."""
    now_s = time.monotonic()
    return common_pb2.WorkerStatus(
        worker_id=worker_id,
        role=role,
        state="serving",
        uptime_seconds=now_s - started_s,
        resident_bytes=psutil.Process().memory_info().rss,
        pid=os.getpid(),
        progress_age_seconds=now_s - progress_s,
    )
