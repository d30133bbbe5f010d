"""A cluster in memory for the console: jobs, rights and changes of one person; a run that answers; a browser."""

import copy
import re
from collections.abc import Collection, Sequence
from typing import Any

import httpx

from crescendo.console.cluster.app import create_app
from crescendo.console.cluster.reader import EVERYWHERE, ClusterRefusal, Person, Right
from crescendo.console.cluster.runs import Seen, status_of
from crescendo.console.cluster.sessions import Sessions
from crescendo.proto.v1 import controller_pb2

HOST = "console.example"
ORIGIN = {"origin": f"http://{HOST}"}
EVERYTHING = frozenset(
    {Right("list", "rljobs"), Right("patch", "rljobs"), Right("get", "pods/log", "")}
    | {Right("update", f"rljobs/{verb}") for verb in ("pause", "unpause", "drain", "checkpoint", "quarantine")}
)
START = "2026-11-21T20:01:02Z"
Manifest = dict[str, Any]


def rljob(name: str = "math", namespace: str = "team", **status: Any) -> Manifest:
    """An RLJob with three stages, in the second."""
    stages = [
        {"name": f"context-{size}k", "maxResponseTokens": size * 1024, "gate": {"name": "length_turn"}}
        for size in (8, 16, 24)
    ]
    progress = {
        "iteration": 212, "totalIterations": 600, "summary": "212/600", "stage": "context-16k", "runPhase": "rollout",
        "reward": "0.613", "responseLength": "6214", "weightVersion": 213, "leaseHolder": "ROLLOUT", "eta": "9h12m",
        "lastUpdatedTime": "2026-11-22T00:10:00Z",
    }  # fmt: skip
    told = {
        "phase": "Running", "reason": "Running", "attempt": 2, "restarts": 1, "gpus": 32, "readySummary": "5/5",
        "progress": progress, "checkpoint": {"iteration": 210, "time": "2026-11-22T00:09:00Z"},
        "conditions": [
            {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": START}
            for kind, reason in (("Accepted", "Valid"), ("ClusterReady", "Ready"), ("Running", "Running"))
        ],
    }  # fmt: skip
    return {
        "metadata": {
            "name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "annotations": {},
            "creationTimestamp": "2026-11-21T20:00:00Z",
        },
        "spec": {
            "suspend": False, "promoteTo": "", "placement": {"mode": "Colocated"}, "queue": {"name": "research"},
            "run": {"steps": [{"kind": "sft"}, {"kind": "rl", "rl": {"stages": stages}}]},
        },
        "status": {**told, **status},
    }  # fmt: skip


class MemoryCluster:
    """jobs: by namespace and name; rights: of the person; refuses: a refusal that every call meets."""

    def __init__(self, *jobs: Manifest, rights: Collection[Right] = ()) -> None:
        self.stored = {(job["metadata"]["namespace"], job["metadata"]["name"]): job for job in jobs}
        self.rights = frozenset(rights)
        self.refuses: ClusterRefusal | None = None
        self.changes: list[tuple[str, str, Manifest]] = []
        self.people: list[Person] = []
        self.pod_list: list[Manifest] = []
        self.event_list: list[Manifest] = []

    def reader(self, person: Person) -> "MemoryCluster":
        """The cluster as a person sees it."""
        self.people.append(person)
        return self

    def _answer(self) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def jobs(self, namespace: str) -> list[Manifest]:
        self._answer()
        if namespace == EVERYWHERE and Right("list", "rljobs") not in self.rights:
            raise ClusterRefusal("rljobs is forbidden at the cluster scope", 403)
        return [copy.deepcopy(job) for key, job in self.stored.items() if namespace in (EVERYWHERE, key[0])]

    async def job(self, namespace: str, name: str) -> Manifest:
        self._answer()
        if (namespace, name) not in self.stored:
            raise ClusterRefusal(f'rljobs "{name}" not found', 404)
        return copy.deepcopy(self.stored[namespace, name])

    async def pods(self, namespace: str, name: str) -> list[Manifest]:
        return self.pod_list

    async def events(self, namespace: str, uid: str) -> list[Manifest]:
        return self.event_list

    async def may(self, namespace: str, rights: Collection[Right]) -> frozenset[Right]:
        self._answer()
        return self.rights.intersection(rights)

    async def change(self, namespace: str, name: str, patch: Manifest) -> None:
        self._answer()
        if patch["metadata"]["uid"] != self.stored[namespace, name]["metadata"]["uid"]:
            raise ClusterRefusal("metadata.uid: field is immutable", 422)
        self.changes.append((namespace, name, patch))

    async def close(self) -> None:
        """Nothing is held."""


class OneToken:
    """The API server's TokenReview: it knows one token."""

    def __init__(self, name: str = "ann") -> None:
        self.name = name
        self.asked = 0
        self.refuses: ClusterRefusal | None = None

    async def admit(self, token: str) -> Person | None:
        self.asked += 1
        if self.refuses is not None:
            raise self.refuses
        return Person(self.name, token) if token.startswith("good") else None


class MemoryRuns:
    """Runs that say what the RLJob says, or `seen`. asked: whether samples were wanted."""

    def __init__(self, seen: Seen | None = None) -> None:
        self.seen = seen
        self.asked: list[bool] = []

    async def look(self, job: Manifest, *, samples: bool) -> Seen:
        self.asked.append(samples)
        return self.seen or Seen(status_of(job))


def browser(
    cluster: MemoryCluster, door: OneToken | None = None, runs: MemoryRuns | None = None, **options: Any
) -> httpx.AsyncClient:
    """A browser before a console."""
    app = create_app(
        door or OneToken(), Sessions(b"secret"), readers=cluster.reader, runs=runs or MemoryRuns(), **options
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}", headers=ORIGIN)


async def sign_in(client: httpx.AsyncClient, token: str = "good") -> httpx.Response:
    """Through the form."""
    return await client.post("/login", data={"token": token})


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of a page's form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def metric_rows(count: int) -> Sequence[controller_pb2.MetricsRow]:
    """Rows of a run that learns, in three stages."""
    return [
        controller_pb2.MetricsRow(
            row=number, stage=f"context-{(8, 16, 24)[min(2, 3 * number // count)]}k",
            values={
                "iteration": number + 1, "reward": 0.2 + 0.5 * number / count + 0.03 * (number * 7 % 5),
                "length": 2000 + 20 * number, "accuracy": 0.3 + 0.4 * number / count + 0.02 * (number * 3 % 7),
                "clip_ratio": 0.05 + 0.01 * (number * 11 % 6),
                **({"validation_accuracy": 0.3 + 0.45 * number / count} if number % 10 == 0 else {}),
            },
        )
        for number in range(count)
    ]  # fmt: skip
