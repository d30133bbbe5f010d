"""What the operator tells a scraper."""

import pytest
from prometheus_client.core import Metric

from crescendo.common.errors import EnvironmentProblem
from crescendo.controller.operator.metrics import Counts


def samples(counts: Counts, num_waiting: int = 0) -> dict[tuple[str, ...], float]:
    families: list[Metric] = list(counts.families(num_waiting))
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def test_looks_are_counted_by_how_they_end() -> None:
    counts = Counts()

    async def work(namespace: str, name: str) -> float:
        if name == "away":
            raise EnvironmentProblem("no answer", fix="wait")
        if name == "wrong":
            raise KeyError("status")
        return 5.0

    counted = counts.timed(work)
    assert [await counted("team", "fine"), await counted("team", "fine")] == [5.0, 5.0]
    with pytest.raises(EnvironmentProblem):
        await counted("team", "away")
    with pytest.raises(KeyError):
        await counted("team", "wrong")
    found = samples(counts, 3)
    outcomes = {outcome: found["crescendo_operator_reconciles_total", outcome] for outcome in ("done", "repeated")}
    assert outcomes == {"done": 2, "repeated": 1}
    assert found["crescendo_operator_reconciles_total", "mistake"] == 1
    assert found["crescendo_operator_reconcile_seconds_count",] == 4
    assert found["crescendo_operator_waiting_jobs",] == 3


def test_jobs_are_those_of_the_last_resync() -> None:
    counts = Counts()
    assert samples(counts)["crescendo_operator_resync_time_seconds",] == 0
    counts.saw([{"phase": "Running", "reason": "Training", "gpus": 8}, {"phase": "Queued", "reason": "Pending"}, {}])
    counts.saw([{"phase": "Running", "reason": "Training", "gpus": 16}, {}])
    found = samples(counts)
    jobs = {key[1:]: value for key, value in found.items() if key[0] == "crescendo_operator_jobs"}
    assert jobs == {("Running", "Training"): 1, ("Pending", ""): 1}
    assert found["crescendo_operator_gpus",] == 16
    assert found["crescendo_operator_resync_time_seconds",] > 1.7e9
