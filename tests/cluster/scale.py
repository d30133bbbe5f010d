"""Many RLJobs at once through one operator: created, ready, left alone, suspended, deleted; what each part took.

Called by tests/cluster/test_scale.py with few and by `make bench BENCH=operator_scale` with hundreds.
"""

import asyncio
import copy
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from crescendo.controller.operator.api import ApiFailure, KubernetesApi
from crescendo.controller.operator.resource import KIND, Job
from tests.cluster.jobs import quickstart, volumes
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.operator_process import Operator

GPUS_A_NODE = 8
# Different run files, since the operator checks each one once.
SEEDS = 10
AT_ONCE = 16
WRITES = ("create", "update", "patch", "delete")
Calls = Callable[[], Counter[str]]


@dataclass
class Figures:
    """seconds: of each part; calls: of the operator in each part, by verb and resource; memory of the operator."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    peak_bytes: int = 0
    cpu_seconds: float = 0.0

    @property
    def steady_writes(self) -> int:
        """Writes while nothing happened."""
        return sum(count for call, count in self.calls["steady"].items() if call.split()[0] in WRITES)

    def by_verb(self) -> dict[str, dict[str, int]]:
        """Calls of each part by verb."""
        found: dict[str, dict[str, int]] = {}
        for part, counted in self.calls.items():
            verbs: Counter[str] = Counter()
            for call, count in counted.items():
                verbs[call.split()[0]] += count
            found[part] = dict(verbs)
        return found


class Crowd:
    """`count` jobs of one namespace. limit_s: for each part; say: is told of each part that has ended."""

    def __init__(
        self,
        plane: ControlPlane,
        operator: Operator,
        namespace: str,
        count: int,
        limit_s: float,
        say: Callable[[str], None] = print,
    ) -> None:
        self._say = say
        self._plane = plane
        self._operator = operator
        self._namespace = namespace
        self._names = [f"job-{number}" for number in range(count)]
        self._limit_s = limit_s
        self.figures = Figures()

    async def live(self, calls: Calls, steady_s: float) -> Figures:
        """The whole of it. steady_s: how long the ready jobs are left alone."""
        volumes(self._plane, self._namespace, tuple(self._names))
        api = KubernetesApi(self._plane.admin)
        try:
            await self._part("ready", calls, self._create(api), lambda: self._all(api, is_ready))
            await asyncio.sleep(10)
            await self._part("steady", calls, asyncio.sleep(steady_s), _at_once)
            await self._part("suspended", calls, self._suspend(api), lambda: self._all(api, is_suspended))
            await self._part("deleted", calls, self._delete(api), lambda: self._gone(api))
        finally:
            await api.close()
        self.figures.cpu_seconds = self._operator.cpu_seconds()
        return self.figures

    async def _part(self, name: str, calls: Calls, begin: Awaitable[None], done: Callable[[], Awaitable[bool]]) -> None:
        before, begun = calls(), time.monotonic()
        await begin
        while not await patiently(done):
            self.figures.peak_bytes = max(self.figures.peak_bytes, self._operator.resident_bytes())
            if time.monotonic() - begun > self._limit_s:
                raise TimeoutError(f"{len(self._names)} jobs were not {name} within {self._limit_s:.0f} s")
            await asyncio.sleep(pause_s(len(self._names)))
        self.figures.seconds[name] = round(time.monotonic() - begun, 1)
        self.figures.calls[name] = calls() - before
        self._say(f"{name} after {self.figures.seconds[name]} s")

    async def _each(self, do: Callable[[str], Awaitable[Any]]) -> None:
        await each(self._names, do, self._limit_s)

    async def _create(self, api: KubernetesApi) -> None:
        template = one_gpu_job(self._namespace)

        def manifest(name: str) -> dict[str, Any]:
            job = copy.deepcopy(template)
            job["metadata"]["name"] = name
            job["spec"]["run"].setdefault("run", {})["seed"] = int(name.removeprefix("job-")) % SEEDS
            return job

        await self._each(lambda name: api.create(manifest(name)))

    async def _suspend(self, api: KubernetesApi) -> None:
        await self._each(lambda name: api.merge(KIND, name, self._namespace, {"spec": {"suspend": True}}))

    async def _delete(self, api: KubernetesApi) -> None:
        await self._each(lambda name: api.delete(KIND, name, self._namespace))

    async def _all(self, api: KubernetesApi, holds: Callable[[Job], bool]) -> bool:
        jobs = [Job.from_body(body) for body in await api.find(KIND, self._namespace, {})]
        return len(jobs) == len(self._names) and all(map(holds, jobs))

    async def _gone(self, api: KubernetesApi) -> bool:
        for kind in (KIND, "RayJob", "StatefulSet", "Pod"):
            if await api.find(kind, self._namespace, {}):
                return False
        return True


def one_gpu_job(namespace: str) -> dict[str, Any]:
    """What the jobs are made from: rendering a run file takes longer than to create an RLJob."""
    return quickstart("any", namespace, placement={"nodes": 1, "devicesPerNode": 1})


async def each(names: Iterable[str], do: Callable[[str], Awaitable[Any]], limit_s: float) -> None:
    """Does something that may be repeated for each name, a few at once; again where the API server does not answer."""
    gate, deadline = asyncio.Semaphore(AT_ONCE), time.monotonic() + limit_s

    async def one(name: str) -> None:
        async with gate:
            while True:
                try:
                    return await do(name)
                except ApiFailure as failure:
                    if failure.code or time.monotonic() > deadline:
                        raise

    await asyncio.gather(*map(one, names))


def pause_s(count: int) -> float:
    """Between two looks at so many objects, whose listing takes cores from what is measured."""
    return max(1.0, count / 100)


def is_ready(job: Job) -> bool:
    """Whether its RayCluster has all its pods."""
    return job.is_true("ClusterReady")


def is_suspended(job: Job) -> bool:
    """Whether its devices are free."""
    return job.is_true("Suspended") and job.status.get("phase") == "Suspended"


async def patiently(done: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it is done; an API server that is late, on two cores that all share, is no finding."""
    try:
        return await done()
    except ApiFailure as failure:
        if failure.code != 0:
            raise
        return False


async def _at_once() -> bool:
    return True
