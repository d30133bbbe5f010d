"""Five hundred RLJobs through one operator, on a real control plane with fake nodes and fake GPUs.

`make bench BENCH=operator_scale` (ARGS="--jobs 100") prints one JSON line: seconds until all are ClusterReady, are
Suspended, are deleted with all that they own; the operator's memory and CPU time; its API calls by verb and resource,
from the API server's audit log, also while nothing happens. The baseline is the seconds that KubeRay needs for as many
bare RayJobs of the same pods, so `ratio` says how much the operator adds. Everything shares this machine's cores.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.children import ray_job
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job
from tests.bench import harness
from tests.cluster.kube.build import build
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.ready import WATCHED_USER, calls, ready
from tests.cluster.operator_process import Operator
from tests.cluster.scale import GPUS_A_NODE, Crowd, Figures, each, one_gpu_job, patiently, pause_s

RESYNC_S = 30.0
STEADY_S = 60.0
SPARE_NODES = 2


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--limit", type=float, default=1500.0, help="seconds for each part")
    asked = parser.parse_args()
    build()
    with tempfile.TemporaryDirectory(prefix="crescendo-scale-") as folder:
        nodes = -(-asked.jobs // GPUS_A_NODE) + SPARE_NODES
        with ready(Path(folder) / "cluster", nodes, audited=True) as plane:
            figures = crowd(plane, Path(folder), asked.jobs, asked.limit)
            harness.progress(f"ours: {figures.seconds}")
            bare_s = asyncio.run(bare(plane, asked.jobs, asked.limit))
            harness.report(measured(figures, bare_s, asked.jobs))


def crowd(plane: ControlPlane, folder: Path, count: int, limit_s: float) -> Figures:
    """The RLJobs."""
    plane.kubectl("create", "namespace", "crowd")
    kubeconfig = plane.user(WATCHED_USER, ("system:masters",))
    operator = Operator(kubeconfig, folder, resync_s=RESYNC_S)
    operator.start()
    try:
        found = Crowd(plane, operator, "crowd", count, limit_s, harness.progress)
        return asyncio.run(found.live(lambda: calls(plane), STEADY_S))
    finally:
        operator.kill()
        harness.progress(operator.log[-2000:])


async def bare(plane: ControlPlane, count: int, limit_s: float) -> float:
    """Seconds until KubeRay has as many RayClusters ready, made from bare RayJobs without volumes or owners."""
    plane.kubectl("create", "namespace", "bare")
    api = KubernetesApi(plane.admin)
    body, names = one_gpu_job("bare"), [f"bare-{number}" for number in range(count)]
    begun = time.monotonic()
    try:
        await each(names, lambda name: api.create(bare_ray_job(name, body)), limit_s)

        async def done() -> bool:
            return sum(map(provisioned, await api.find("RayCluster", "bare", {}))) >= count

        while not await patiently(done):
            if time.monotonic() - begun > limit_s:
                raise TimeoutError(f"{count} bare RayJobs had no clusters within {limit_s:.0f} s")
            await asyncio.sleep(pause_s(count))
    finally:
        await api.close()
    return time.monotonic() - begun


def bare_ray_job(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """The RayJob that the operator would make, with nothing in its pods that somebody else must have made first."""
    about = {"name": name, "uid": "none", "creationTimestamp": "2026-01-01T00:00:00Z"}
    found = ray_job(Job.from_body({**body, "metadata": {**body["metadata"], **about}}), 1, Options())
    found["metadata"].pop("ownerReferences")
    cluster = found["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for template in (*templates, found["spec"]["submitterPodTemplate"]):
        template["spec"].pop("serviceAccountName")
        template["spec"]["volumes"] = []
        for container in template["spec"]["containers"]:
            container["volumeMounts"] = []
    return found


def provisioned(cluster: dict[str, Any]) -> bool:
    """Whether all pods of a RayCluster were ready once."""
    conditions = (cluster.get("status") or {}).get("conditions", ())
    return any(one["type"] == "RayClusterProvisioned" and one["status"] == "True" for one in conditions)


def measured(figures: Figures, bare_s: float, count: int) -> harness.Measured:
    """The line."""
    details = {
        "jobs": count,
        "seconds": figures.seconds,
        "operator_peak_mib": round(figures.peak_bytes / 2**20, 1),
        "operator_cpu_s": round(figures.cpu_seconds, 1),
        "resync_s": RESYNC_S,
        "steady_writes": figures.steady_writes,
        "calls_by_verb": figures.by_verb(),
        "calls": {part: dict(counted.most_common()) for part, counted in figures.calls.items()},
    }
    return harness.Measured("operator_scale", figures.seconds["ready"], bare_s, "s", details)


if __name__ == "__main__":
    main()
