"""How long a trainer's work has made no progress: idle time before it does not count."""

import asyncio
import threading
import time

from crescendo.trainer.service import _ComputeThread


async def test_time_before_the_work_began_does_not_count() -> None:
    compute, begun, go_on = _ComputeThread(), threading.Event(), threading.Event()
    long_ago = time.monotonic() - 3600.0
    assert compute.progress_age_s(long_ago) == 0.0
    work = asyncio.create_task(compute.run(lambda: (begun.set(), go_on.wait())))
    await asyncio.to_thread(begun.wait, 10)
    await asyncio.sleep(0.05)
    assert 0.05 <= compute.progress_age_s(long_ago) < 60.0
    assert compute.progress_age_s(time.monotonic()) < 0.04
    go_on.set()
    await work
    assert compute.progress_age_s(long_ago) == 0.0
    compute.end()
