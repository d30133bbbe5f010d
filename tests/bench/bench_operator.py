"""One look at an RLJob that runs as it should, against a real API server: milliseconds, and writes (there are none).

`make bench BENCH=operator` prints one JSON line. Ours: `Reconciler.reconcile` in this process, over TLS to the API
server and over mTLS to a stub of the run's controller. Baseline: the same reads by the same client, one after the
other, with nothing decided. They take turns; `ratio` is ours over the baseline, both medians. The target is 50 ms.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from crescendo.common.rpc.identity import VARIABLE
from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.authority import load_authority, renew_platform
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.progress import ControllerRuns
from crescendo.controller.operator.reconcile import Reconciler
from tests.bench import harness
from tests.cluster.controller_stub import StubController, write_identity
from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.build import build
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.ready import ready

NAMESPACE = "steady"
TARGET_MS = 50.0
READY_S = 300.0


class Noted:
    """A KubernetesApi whose calls are noted: (method, arguments)."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._api, name)

        async def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            return await method(*arguments)

        return call

    @property
    def writes(self) -> int:
        """How many of them change something."""
        return sum(name not in ("get", "find") for name, _ in self.calls)


async def measure(plane: ControlPlane, folder: Path, rounds: int) -> harness.Measured:
    """Brings a job to run, then looks at it again and again."""
    api = KubernetesApi(plane.admin)
    noted: Any = Noted(api)
    stub = await asyncio.to_thread(started_stub, plane, folder)
    os.environ[VARIABLE] = str(folder / "operator")
    try:
        authority = await load_authority(api, Options())
        await renew_platform(api, authority, Options())
        reconciler = Reconciler(noted, ControllerRuns(), Options(), authority, address_of=lambda job: stub.address)
        await asyncio.to_thread(create, plane)
        await settle(plane, reconciler, noted)
        noted.calls.clear()
        await reconciler.reconcile(NAMESPACE, "math")
        reads = list(noted.calls)
        ours, baseline = await turns(reconciler, api, reads, rounds)
    finally:
        await api.close()
        await asyncio.to_thread(stub.stop)
    p90 = sorted(ours)[int(0.9 * len(ours))]
    details = {
        "target_ms": TARGET_MS, "p90_ms": harness.rounded(p90), "rounds": len(ours), "reads": len(reads),
        "writes": noted.writes,
    }  # fmt: skip
    return harness.Measured("operator", harness.median(ours), harness.median(baseline), "ms", details)


def started_stub(plane: ControlPlane, folder: Path) -> StubController:
    """The run's controller."""
    os.environ.update(write_identity(plane, folder / "controller"))
    stub = StubController()
    stub.start()
    return stub


def create(plane: ControlPlane) -> None:
    """The job, in a namespace of its own."""
    plane.kubectl("create", "namespace", NAMESPACE)
    volumes(plane, NAMESPACE)
    plane.apply(quickstart("math", NAMESPACE))


async def settle(plane: ControlPlane, reconciler: Reconciler, noted: Any) -> None:
    """Reconciles until the job runs and a look writes nothing."""
    job, said, deadline = JobView(plane, "math", NAMESPACE), False, time.monotonic() + READY_S
    while True:
        noted.calls.clear()
        await reconciler.reconcile(NAMESPACE, "math")
        status = await asyncio.to_thread(job.status)
        ready = any(one["type"] == "ClusterReady" and one["status"] == "True" for one in status["conditions"])
        if ready and not said:
            await asyncio.to_thread(job.kuberay_says, 1, jobDeploymentStatus="Running", jobStatus="RUNNING")
            said = True
        if status["phase"] == "Running" and noted.writes == 0:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job did not run within {READY_S:.0f} s: {status}")
        await asyncio.sleep(1)


async def turns(
    reconciler: Reconciler, api: KubernetesApi, reads: list[tuple[str, tuple[Any, ...]]], rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each round of ours and of the baseline."""

    async def read_all() -> None:
        for name, arguments in reads:
            await getattr(api, name)(*arguments)

    ours, baseline = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        await reconciler.reconcile(NAMESPACE, "math")
        between = time.perf_counter()
        await read_all()
        ours.append(1000 * (between - begun))
        baseline.append(1000 * (time.perf_counter() - between))
    return ours, baseline


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    build()
    with (
        tempfile.TemporaryDirectory(prefix="crescendo-operator-") as folder,
        ready(Path(folder) / "cluster", nodes=2) as plane,
    ):
        harness.report(asyncio.run(measure(plane, Path(folder), rounds)))


if __name__ == "__main__":
    main()
