"""Which job is looked at next, and that one job's trouble is not another's."""

import asyncio
from collections import Counter

import pytest

from crescendo.common.errors import EnvironmentProblem
from crescendo.controller.operator import queue as queues
from crescendo.controller.operator.queue import WorkQueue


class Work:
    """Notes which job was looked at; some fail."""

    def __init__(self, **failures: Exception) -> None:
        self.looks: Counter[str] = Counter()
        self.failures = failures
        self.at_once = self.most_at_once = 0

    async def __call__(self, namespace: str, name: str) -> float:
        self.looks[name] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if name in self.failures:
            raise self.failures[name]
        return 0.0


async def run(queue: WorkQueue, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.run(), seconds)


@pytest.mark.parametrize("failure", [EnvironmentProblem("no answer", fix="wait"), KeyError("status")])
async def test_a_job_that_fails_is_tried_again_and_holds_up_no_other(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(queues, "LONGEST_BACKOFF_S", 0.05)
    work = Work(bad=failure)
    queue = WorkQueue(work, workers=1)
    for name in ("bad", "good", "better"):
        queue.add("team", name)
    await run(queue, 0.4)
    assert work.looks["good"] == work.looks["better"] == 1
    assert work.looks["bad"] >= 3


async def test_a_job_is_looked_at_by_one_worker_at_a_time_and_again_when_it_changed_meanwhile() -> None:
    work = Work()
    queue = WorkQueue(work, workers=4)
    queue.add("team", "math")
    running = asyncio.create_task(run(queue, 0.3))
    await asyncio.sleep(0.005)
    for _ in range(3):
        queue.add("team", "math")
    await running
    assert work.looks["math"] == 2
    assert work.most_at_once == 1
