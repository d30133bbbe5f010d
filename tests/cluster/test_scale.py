"""Twenty RLJobs with fake GPUs on fake nodes, at once; `make bench BENCH=operator_scale` has five hundred."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.proxy import Proxy
from tests.cluster.operator_process import Operator
from tests.cluster.scale import Crowd

pytestmark = pytest.mark.timeout(900)
JOBS = 20
LIMIT_S = 180.0
MAX_BYTES = 400 << 20


def test_many_jobs_become_ready_are_left_alone_are_suspended_and_go(
    control_plane: ControlPlane, proxy: Proxy, namespace: str, tmp_path: Path
) -> None:
    operator = Operator(control_plane.user("operator", server=proxy.url), tmp_path, [namespace], resync_s=5)
    operator.start()
    try:
        crowd = Crowd(control_plane, operator, namespace, JOBS, LIMIT_S)
        figures = asyncio.run(crowd.live(lambda: named(proxy), steady_s=10))
    finally:
        operator.kill()
        print(operator.log[-3000:])
    assert figures.steady_writes == 0, figures.calls["steady"]
    assert figures.calls["ready"]["patch rayjobs"] == JOBS
    assert figures.calls["suspended"]["delete rayjobs"] == JOBS
    assert 0 < figures.peak_bytes < MAX_BYTES


def named(proxy: Proxy) -> Counter[str]:
    """What the operator has asked for so far."""
    return Counter({f"{verb} {resource}": count for (verb, resource), count in proxy.seen.items()})
