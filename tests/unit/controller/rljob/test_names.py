"""A name that is used again: a job takes up nothing of an earlier one, whenever the garbage collector comes by."""

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.controller.operator.options import Options
from crescendo.controller.operator.reconcile import Reconciler
from crescendo.controller.operator.resource import ADOPT_ANNOTATION, KIND, Manifest
from tests.unit.controller.rljob.test_reconcile import AUTHORITY, Clock, Runs, Store, kuberay_says, with_job

FIRST, SECOND = "1", "2"
LEFT: dict[str, dict[tuple[str, str], Manifest]] = {}


class Collected(Store):
    """An API server whose collector takes an object of a job that is gone every so many calls.

    served: the password that the buffer's pod has read, when its StatefulSet was made.
    """

    def begin(self, objects: dict[tuple[str, str], Manifest], every: int, order: random.Random) -> None:
        self.objects, self.served = objects, ""
        self._every, self._order, self._turns = every, order, 0

    async def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        self.pass_by()
        return await super().get(kind, name, namespace)

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        self.pass_by()
        return await super().find(kind, namespace, labels)

    async def apply(self, manifest: Manifest) -> Manifest:
        self.pass_by()
        if manifest["kind"] == "StatefulSet" and ("StatefulSet", "math-buffer") not in self.objects:
            self.served = self.objects["Secret", "math-buffer"]["data"]["password"]
        return await super().apply(manifest)

    async def create(self, manifest: Manifest) -> None:
        self.pass_by()
        await super().create(manifest)

    def pass_by(self) -> None:
        """The collector looks at what is owned now, as the real one does before it deletes."""
        self._turns += 1
        left = self.left()
        if left and self._turns % self._every == 0:
            self.objects.pop(self._order.choice(left))

    def left(self) -> list[tuple[str, str]]:
        """What only the first job owns."""
        return sorted(key for key, body in self.objects.items() if owners(body) == {FIRST})


def owners(body: Manifest) -> set[str]:
    return {one["uid"] for one in body["metadata"].get("ownerReferences", ())}


async def run_of_the_first(retention: str) -> dict[tuple[str, str], Manifest]:
    """What a job leaves that ran until now, and itself; made once, since a check of a job takes half a second."""
    if retention in LEFT:
        return copy.deepcopy(LEFT[retention])
    store = with_job()
    store.objects[KIND, "math"]["spec"]["storage"] = {"retention": retention}
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    del store.objects["RayCluster", "ray-1"]
    about = {
        "name": "data-math-buffer-0",
        "annotations": store.objects["StatefulSet", "math-buffer"]["metadata"]["annotations"],
    }
    if retention == "Delete":
        about["ownerReferences"] = store.objects["StatefulSet", "math-buffer"]["metadata"]["ownerReferences"]
    store.objects["PersistentVolumeClaim", "data-math-buffer-0"] = {"metadata": about}
    LEFT[retention] = store.objects
    return copy.deepcopy(store.objects)


STORE = Collected()
RECONCILER = Reconciler(STORE, Runs(), Options(), AUTHORITY, Clock())  # one: it remembers what it has checked


@settings(max_examples=60, deadline=None)
@given(every=st.integers(1, 40), seed=st.integers(0, 999), retention=st.sampled_from(["Delete", "Retain"]))
async def test_a_job_begins_with_a_server_and_an_attempt_of_its_own(every: int, seed: int, retention: str) -> None:
    objects = await run_of_the_first(retention)
    earlier = objects["Secret", "math-buffer"]["data"]["password"]
    job = objects[KIND, "math"]
    job["metadata"] |= {"uid": SECOND, "annotations": {ADOPT_ANNOTATION: FIRST} if retention == "Retain" else {}}
    job.pop("status")
    store, reasons = STORE, []
    store.begin(objects, every, random.Random(seed))
    for _ in range(400):
        await RECONCILER.reconcile("team", "math")
        reasons.append(store.objects[KIND, "math"]["status"]["reason"])
        if SECOND in owners(store.objects.get(("RayJob", "math-1"), {"metadata": {}})):
            break
    assert set(reasons[:-1]) <= {"EarlierJobLeaving"}
    assert reasons[-1] == "AttemptCreated"
    for _ in range(3 * every):
        store.pass_by()
    attempt, server, secret = (
        store.objects["RayJob", "math-1"],
        store.objects["StatefulSet", "math-buffer"],
        store.objects["Secret", "math-buffer"],
    )
    assert owners(attempt) == owners(server) == owners(secret) == {SECOND}
    assert "status" not in attempt
    assert secret["data"]["password"] == store.served != earlier
    for role in ("controller", "worker"):
        assert owners(store.objects["Secret", f"math-identity-{role}"]) == {SECOND}
    assert store.left() == []


@pytest.mark.parametrize(
    ("kind", "name"), [("RayJob", "math-7"), ("StatefulSet", "math-buffer"), ("Secret", "math-buffer")]
)
async def test_what_is_waited_for_is_named(kind: str, name: str) -> None:
    store = with_job()
    owner: dict[str, Any] = {"kind": KIND, "name": "math", "uid": "0"}
    ended = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    store.objects[kind, name] = {"metadata": {"name": name, "uid": name, "ownerReferences": [owner]}, "status": ended}
    reconciler = Reconciler(store, Runs(), Options(), AUTHORITY, Clock())
    await reconciler.reconcile("team", "math")
    status = store.objects[KIND, "math"]["status"]
    assert (status["phase"], status["reason"]) == ("Pending", "EarlierJobLeaving")
    assert status["message"] == f"{kind} {name} goes with an earlier job of this name"
    assert ("RayJob", "math-1") not in store.objects
    store.asked()
    await reconciler.reconcile("team", "math")
    assert {verb for verb, _ in store.asked()} == {"get", "find"}
    del store.objects[kind, name]
    await reconciler.reconcile("team", "math")
    assert ("RayJob", "math-1") in store.objects


async def test_a_secret_that_a_person_made_is_left_as_it_is() -> None:
    store = with_job()
    given_one = {"metadata": {"name": "math-buffer"}, "data": {"password": "aGVsbG8="}}
    store.objects["Secret", "math-buffer"] = dict(given_one)
    await Reconciler(store, Runs(), Options(), AUTHORITY, Clock()).reconcile("team", "math")
    assert ("RayJob", "math-1") in store.objects
    assert store.objects["Secret", "math-buffer"] == given_one
