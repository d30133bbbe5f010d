"""What one look at a job asks of the API server: as little as its next decision needs."""

import copy
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crescendo.common.config import read_mapping
from crescendo.controller.operator.api import ApiFailure
from crescendo.controller.operator.certificates import new_authority
from crescendo.controller.operator.identities import CERTIFICATES_EVERY
from crescendo.controller.operator.observe import PATIENCE
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.plan import SILENT
from crescendo.controller.operator.reconcile import Reconciler
from crescendo.controller.operator.render import to_rljob
from crescendo.controller.operator.requests import Request
from crescendo.controller.operator.resource import KIND, Job, Manifest, Report
from crescendo.controller.operator.shared_buffer import SharedBuffer, SharedBufferProblem
from crescendo.controller.operator.writes import RESYNC_S, SOON_S, Call
from tests.unit.controller.rljob.world import REPORT, START

QUICKSTART = Path(__file__).parents[4] / "recipes/quickstart/recipe.yaml"
AUTHORITY = new_authority(START)


class Store:
    """The API server: what was applied is there. calls: (verb, kind); refused: what it answers to some of them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.calls: list[tuple[str, str]] = []
        self.refused: dict[tuple[str, str], ApiFailure] = {}

    def _note(self, verb: str, kind: str) -> None:
        self.calls.append((verb, kind))
        if (verb, kind) in self.refused:
            raise self.refused[verb, kind]

    async def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        self._note("get", kind)
        return copy.deepcopy(self.objects.get((kind, name)))

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        self._note("find", kind)
        return [copy.deepcopy(body) for (found, _), body in self.objects.items() if found == kind]

    async def apply(self, manifest: Manifest) -> Manifest:
        self._note("apply", manifest["kind"])
        key = (manifest["kind"], manifest["metadata"]["name"])
        self.objects[key] = {**self.objects.get(key, {}), **copy.deepcopy(manifest)}
        self.objects[key]["metadata"].setdefault("uid", manifest["metadata"]["name"])
        return manifest

    async def create(self, manifest: Manifest) -> None:
        self._note("create", manifest["kind"])
        made = copy.deepcopy(manifest)
        made["metadata"]["uid"] = f"uid-{len(self.calls)}"
        self.objects.setdefault((manifest["kind"], manifest["metadata"]["name"]), made)

    async def delete(self, kind: str, name: str, namespace: str) -> None:
        self._note("delete", kind)
        self.objects.pop((kind, name), None)

    async def put_status(self, name: str, namespace: str, version: str, status: Manifest) -> None:
        self._note("status", KIND)
        self.objects[KIND, name]["status"] = status

    async def patch(self, kind: str, name: str, namespace: str, operations: list[Manifest]) -> None:
        self._note("patch", kind)

    def asked(self) -> list[tuple[str, str]]:
        """The calls since it was last asked for."""
        found, self.calls = self.calls, []
        return found


class Runs:
    """A controller that always answers alike, or not at all."""

    answers = True

    async def report(self, address: str) -> Report | None:
        return REPORT if self.answers else None

    async def call(self, address: str, call: Call) -> bool:
        return True

    async def ask(self, address: str, request: Request) -> str | None:
        return ""


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store() -> Store:
    return with_job()


def with_job() -> Store:
    """A store with an RLJob."""
    job = to_rljob(read_mapping(QUICKSTART), image="any", name="math", namespace="team")
    job["metadata"] |= {
        "uid": "1",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    found = Store()
    found.objects[KIND, "math"] = job
    return found


def kuberay_says(store: Store, **status: Any) -> None:
    store.objects["RayJob", "math-1"]["status"] = {"rayClusterName": "ray-1", **status}
    conditions = [{"type": "HeadPodReady", "status": "True"}]
    ready = {"desiredWorkerReplicas": 1, "readyWorkerReplicas": 1, "conditions": conditions}
    store.objects["RayCluster", "ray-1"] = {"metadata": {"name": "ray-1"}, "status": ready}


async def test_a_steady_job_is_looked_at_with_three_reads_and_its_certificates_now_and_then(store: Store) -> None:
    clock = Clock()
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, clock)
    assert await reconciler.reconcile("team", "math") <= SOON_S
    first = store.asked()
    assert [kind for verb, kind in first if verb == "get"].count("PersistentVolumeClaim") == 2
    assert ("apply", "RayJob") in first
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    await reconciler.reconcile("team", "math")
    store.asked()
    steady = [("get", KIND), ("find", "RayJob"), ("get", "RayCluster")]
    assert await reconciler.reconcile("team", "math") == RESYNC_S
    assert store.asked() == steady
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    assert store.asked() == [*steady, ("get", "Secret"), ("get", "Secret")]
    store.objects.pop(("Secret", "math-identity-worker"))
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    assert store.asked()[-1] == ("apply", "Secret")
    clock.now += timedelta(seconds=1)
    await reconciler.reconcile("team", "math")
    assert store.asked() == steady


async def test_a_job_whose_phase_turned_is_looked_at_soon_and_one_that_waits_is_not(store: Store) -> None:
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, Clock())
    await reconciler.reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Initializing")
    await reconciler.reconcile("team", "math")
    assert await reconciler.reconcile("team", "math") == RESYNC_S
    kuberay_says(store, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert await reconciler.reconcile("team", "math") == SOON_S
    assert store.objects[KIND, "math"]["status"]["phase"] == "Succeeded"


async def test_a_run_that_stops_answering_says_so_and_one_missed_answer_does_not(store: Store) -> None:
    clock, runs = Clock(), Runs()
    reconciler = Reconciler(store, runs, Options(), AUTHORITY, clock)
    await reconciler.reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    await reconciler.reconcile("team", "math")

    async def look() -> tuple[str, int]:
        """The reason that is told, and how many writes that took."""
        store.asked()
        await reconciler.reconcile("team", "math")
        writes = [verb for verb, _ in store.asked() if verb in ("status", "create")]
        return store.objects[KIND, "math"]["status"]["reason"], len(writes)

    runs.answers = False
    assert await look() == ("Running", 0)
    runs.answers = True
    clock.now += SILENT / 2
    assert await look() == ("Running", 0)
    runs.answers = False
    await look()
    clock.now += SILENT - timedelta(seconds=1)
    assert await look() == ("Running", 0)
    clock.now += timedelta(seconds=1)
    assert await look() == ("ControllerSilent", 2)
    clock.now += timedelta(hours=1)
    assert await look() == ("ControllerSilent", 0)
    assert "since 2026-01-01T00:02:30Z" in store.objects[KIND, "math"]["status"]["message"]
    runs.answers = True
    assert (await look())[0] == "Running"


async def test_an_operator_that_starts_anew_looks_at_certificates_at_once(store: Store) -> None:
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    store.asked()
    await Reconciler(store, Runs(), Options(), new_authority(START), Clock()).reconcile("team", "math")
    assert store.asked().count(("apply", "Secret")) == 2


async def test_a_secret_of_an_earlier_job_of_the_same_name_is_replaced(store: Store) -> None:
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    before = copy.deepcopy(store.objects["Secret", "math-identity-worker"])
    store.objects[KIND, "math"]["metadata"]["uid"] = "2"
    store.objects[KIND, "math"].pop("status")
    gone = ("math-run", "data-math-buffer-0", "math-1", "math-buffer")
    store.objects = {key: body for key, body in store.objects.items() if key[1] not in gone}
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    after = store.objects["Secret", "math-identity-worker"]
    assert after["data"] != before["data"]
    assert after["metadata"]["ownerReferences"][0]["uid"] == "2"


async def test_a_buffer_whose_password_was_deleted_starts_anew_with_the_next_one(store: Store) -> None:
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, Clock())

    async def attempt() -> tuple[str, Manifest]:
        """Password and pod template as the next attempt finds them."""
        store.objects[KIND, "math"].pop("status", None)
        store.objects.pop(("RayJob", "math-1"), None)
        store.objects.get(("StatefulSet", "math-buffer"), {})["status"] = {"readyReplicas": 1}
        await reconciler.reconcile("team", "math")
        password = store.objects["Secret", "math-buffer"]["data"]["password"]
        return password, store.objects["StatefulSet", "math-buffer"]["spec"]["template"]

    first = await attempt()
    assert await attempt() == first
    store.objects.pop(("Secret", "math-buffer"))
    second = await attempt()
    assert second[0] != first[0]
    assert second[1]["metadata"]["annotations"] != first[1]["metadata"]["annotations"]
    assert second[1]["spec"] == first[1]["spec"]


@pytest.mark.parametrize(
    ("claim", "given", "reason"),
    [
        ("math-run", "", "StorageMismatch"),
        ("data-math-buffer-0", "", "StorageMismatch"),
        ("math-run", "math-run", "AttemptCreated"),
        ("data-math-buffer-0", "math-run", "StorageMismatch"),
        ("other", "", "AttemptCreated"),
    ],
)
async def test_a_claim_that_no_job_made_is_used_only_when_it_is_named(
    store: Store, claim: str, given: str, reason: str
) -> None:
    found = {"metadata": {"name": claim}, "spec": {"resources": {}}}
    store.objects["PersistentVolumeClaim", claim] = copy.deepcopy(found)
    if given:
        store.objects[KIND, "math"]["spec"]["storage"] = {"claimName": given}
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    status = store.objects[KIND, "math"]["status"]
    assert status["reason"] == reason
    assert store.objects["PersistentVolumeClaim", claim] == found
    if reason == "StorageMismatch":
        assert "is no job's: delete it" in status["message"]
        assert ("spec.storage.claimName" in status["message"]) == (claim == "math-run")


async def test_with_an_issuer_no_pods_are_asked_for_before_it_has_issued(store: Store) -> None:
    clock = Clock()
    reconciler = Reconciler(store, Runs(), Options(certificate_issuer="vault"), AUTHORITY, clock)
    assert await reconciler.reconcile("team", "math") == SOON_S
    status = store.objects[KIND, "math"]["status"]
    assert (status["phase"], status["reason"]) == ("Pending", "CertificateMissing")
    asked = {name: body for (kind, name), body in store.objects.items() if kind == "Certificate"}
    assert set(asked) == {"math-identity-controller", "math-identity-worker"}
    assert not any(kind in ("RayJob", "Secret") for kind, _ in store.objects)

    ready = {"type": "Ready", "status": "True", "observedGeneration": 1}
    for name, body in asked.items():
        body["metadata"]["generation"] = 1
        body["status"] = {"conditions": [ready]}
        store.objects["Secret", name] = {"metadata": {"name": name}}
    store.asked()
    await reconciler.reconcile("team", "math")
    assert ("RayJob", "math-1") in store.objects
    assert store.asked().count(("patch", "Secret")) == 2
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    clock.now += CERTIFICATES_EVERY
    owner = {"uid": "c-1", "kind": "Certificate"}
    store.objects["Secret", "math-identity-worker"]["metadata"]["ownerReferences"] = [owner]
    store.objects["Secret", "math-identity-controller"]["metadata"]["ownerReferences"] = [{"uid": "1", "kind": KIND}]
    store.asked()
    await reconciler.reconcile("team", "math")
    looks = [call for call in store.asked() if call[1] in ("Secret", "Certificate", "CertificateRequest")]
    assert looks == [("get", "Secret"), ("get", "Certificate")] * 2
    store.objects.pop(("Certificate", "math-identity-controller"))
    store.objects["Certificate", "math-identity-worker"]["spec"]["duration"] = "1h"
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    calls = store.asked()
    assert calls.count(("apply", "Certificate")) == 2
    assert ("patch", "Secret") not in calls


async def test_pods_are_looked_at_only_when_they_are_late(store: Store) -> None:
    clock = Clock()
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, clock)
    await reconciler.reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Initializing")
    store.objects["RayCluster", "ray-1"]["status"]["readyWorkerReplicas"] = 0
    unplaced = {"type": "PodScheduled", "status": "False", "message": "0/4 nodes are available"}
    store.objects["Pod", "ray-1-worker"] = {
        "metadata": {"name": "ray-1-worker", "labels": {"ray.io/cluster": "ray-1", "ray.io/node-type": "worker"}},
        "status": {"conditions": [unplaced]},
    }
    await reconciler.reconcile("team", "math")
    assert ("find", "Pod") not in store.asked()
    clock.now += PATIENCE
    await reconciler.reconcile("team", "math")
    assert store.asked().count(("find", "Pod")) == 1
    status = store.objects[KIND, "math"]["status"]
    assert (status["reason"], status["message"]) == ("PodsBlocked", "ray-1-worker: 0/4 nodes are available")
    store.objects["RayCluster", "ray-1"]["status"]["readyWorkerReplicas"] = 1
    await reconciler.reconcile("team", "math")
    assert ("find", "Pod") not in store.asked()


async def test_what_a_job_adopts_is_checked_also_when_another_of_the_same_spec_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[str] = []

    async def admit(self: SharedBuffer, job: Job, password: str) -> None:
        admitted.append(job.name)

    monkeypatch.setattr(SharedBuffer, "admit", admit)
    honest = store.objects[KIND, "math"]
    honest["spec"]["buffer"] = {"mode": "Shared"}
    greedy = copy.deepcopy(honest)
    adopts = {"rl.crescendo.dev/adopt-storage": "x}:* allkeys +@all #"}
    greedy["metadata"] |= {"name": "greedy", "uid": "2", "annotations": adopts}
    store.objects[KIND, "greedy"] = greedy
    reconciler = Reconciler(store, Runs(), Options(shared_buffer_url="redis://shared:6379/0"), AUTHORITY, Clock())
    for name in ("math", "greedy"):
        await reconciler.reconcile("team", name)
    assert admitted == ["math"]
    assert store.objects[KIND, "greedy"]["status"]["reason"] == "ValidationFailed"


async def test_a_child_that_is_refused_is_told_once_and_a_refused_event_holds_up_nothing(store: Store) -> None:
    quota = ApiFailure('the API server refused: serviceaccounts "math" is forbidden: exceeded quota', 403)
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, Clock())
    store.refused = {("apply", "ServiceAccount"): quota}
    for _ in range(3):
        with pytest.raises(ApiFailure):
            await reconciler.reconcile("team", "math")
    status = store.objects[KIND, "math"]["status"]
    assert (status["phase"], status["reason"], status["message"]) == ("Pending", "Refused", quota.message)
    assert [verb for verb, _ in store.calls].count("status") == 1
    assert store.calls.count(("create", "Event")) == 1
    store.refused = {("create", "Event"): quota}
    await reconciler.reconcile("team", "math")
    status = store.objects[KIND, "math"]["status"]
    assert (status["phase"], status["reason"]) == ("Starting", "AttemptCreated")
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    await reconciler.reconcile("team", "math")
    store.refused = {("get", "RayCluster"): quota}
    with pytest.raises(ApiFailure):
        await reconciler.reconcile("team", "math")
    assert store.objects[KIND, "math"]["status"]["phase"] == "Running"
    assert store.objects[KIND, "math"]["status"]["reason"] == "Running"


async def test_a_shared_server_that_does_not_answer_is_told(store: Store) -> None:
    store.objects[KIND, "math"]["spec"]["buffer"] = {"mode": "Shared"}
    away = Options(shared_buffer_url="redis://127.0.0.1:1/0")
    with pytest.raises(SharedBufferProblem):
        await Reconciler(store, Runs(), away, AUTHORITY, Clock()).reconcile("team", "math")
    status = store.objects[KIND, "math"]["status"]
    assert (status["phase"], status["reason"]) == ("Pending", "SharedBufferUnavailable")
    assert "cannot be administered" in status["message"]
