"""A certificate that is not renewed while its pods run: what the RLJob tells, how often, and that all else goes on."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.common.rpc.identity import VARIABLE
from crescendo.controller.operator.api import ApiFailure
from crescendo.controller.operator.identities import AGAIN, CERTIFICATES_EVERY
from crescendo.controller.operator.issuer import GRACE
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.plan import plan
from crescendo.controller.operator.progress import ControllerRuns
from crescendo.controller.operator.reconcile import Reconciler
from crescendo.controller.operator.renewal import with_renewal
from crescendo.controller.operator.resource import KIND, Manifest, format_time
from tests.unit.controller.rljob.test_plan import started
from tests.unit.controller.rljob.test_reconcile import AUTHORITY, Clock, Runs, Store, kuberay_says, with_job

LIFE = timedelta(days=7)
ISSUED = Options(certificate_issuer="vault")
READS = frozenset({"get", "find"})


class Refusing(Store):
    """An API server that takes no object of some kinds: by a quota, or since a webhook of theirs is down."""

    def __init__(self, objects: dict[tuple[str, str], Manifest]) -> None:
        super().__init__()
        self.objects = objects
        self.refused: set[str] = set()

    async def apply(self, manifest: Manifest) -> Manifest:
        if manifest["kind"] in self.refused:
            self.calls.append(("apply", manifest["kind"]))
            raise ApiFailure("the API server refused: secrets is forbidden", 403)
        return await super().apply(manifest)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.objects[KIND, "math"]["status"])

    def expiring(self) -> dict[str, Any]:
        """The condition."""
        found = [one for one in self.status["conditions"] if one["type"] == "CertificateExpiring"]
        return dict(found[0]) if found else {}

    def events(self) -> list[str]:
        """Reasons, in order."""
        return [body["reason"] for (kind, _), body in self.objects.items() if kind == "Event"]

    def writes(self) -> list[tuple[str, str]]:
        """Since they were last asked for."""
        return [call for call in self.asked() if call[0] not in READS]


async def running(options: Options, clock: Clock) -> tuple[Refusing, Reconciler]:
    """A job that runs, and is looked at by an operator that has seen its certificates just now."""
    store = Refusing(with_job().objects)
    reconciler = Reconciler(store, Runs(), options, AUTHORITY, clock)
    if options.certificate_issuer:
        await reconciler.reconcile("team", "math")
        for (kind, name), body in list(store.objects.items()):
            if kind == "Certificate":
                body["metadata"] |= {"generation": 1, "uid": name}
                issued(body, clock.now)
                store.objects["Secret", name] = {"metadata": body["metadata"], "data": {}}
    await reconciler.reconcile("team", "math")
    kuberay_says(store, jobDeploymentStatus="Running", jobStatus="RUNNING")
    await reconciler.reconcile("team", "math")
    assert store.status["reason"] == "Running"
    store.asked()
    return store, reconciler


def issued(certificate: Manifest, now: datetime) -> None:
    """What cert-manager says of one that it has issued."""
    ready = {"type": "Ready", "status": "True", "observedGeneration": 1, "message": "up to date"}
    certificate["status"] = {"conditions": [ready], "renewalTime": format_time(now + LIFE * 2 / 3)}


async def test_a_refused_renewal_is_told_once_tried_again_each_minute_and_holds_up_nothing() -> None:
    clock = Clock()
    store, reconciler = await running(Options(), clock)
    store.refused = {"Secret"}
    clock.now += LIFE * 2 / 3
    await reconciler.reconcile("team", "math")
    assert store.writes() == [("apply", "Secret")] * 2 + [("create", "Event"), ("status", KIND)]
    told = store.expiring()
    assert (told["status"], told["reason"]) == ("True", "NotRenewed")
    assert "math-identity-controller ends 2026-01-08T00:00:00Z and is not renewed: " in told["message"]
    assert "math-identity-worker ends" in told["message"]
    assert "secrets is forbidden" in told["message"]
    assert (store.status["phase"], store.status["reason"]) == ("Running", "CertificateExpiring")
    assert store.status["message"] == told["message"]

    await reconciler.reconcile("team", "math")
    assert store.writes() == []
    clock.now += AGAIN
    await reconciler.reconcile("team", "math")
    assert store.writes() == [("apply", "Secret")] * 2
    store.objects[KIND, "math"]["spec"]["suspend"] = True
    await reconciler.reconcile("team", "math")
    assert store.status["phase"] == "Suspending"
    assert store.events().count("CertificateExpiring") == 1


async def test_a_renewal_that_comes_is_told_too() -> None:
    clock = Clock()
    store, reconciler = await running(Options(), clock)
    store.refused = {"Secret"}
    clock.now += LIFE * 2 / 3
    await reconciler.reconcile("team", "math")
    store.refused = set()
    clock.now += AGAIN
    await reconciler.reconcile("team", "math")
    assert (store.expiring()["status"], store.status["reason"], store.status["message"]) == ("False", "Running", "")
    assert store.events()[-1] == "CertificateRenewed"
    store.asked()
    clock.now += AGAIN
    await reconciler.reconcile("team", "math")
    assert ("get", "Secret") not in store.asked()
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    assert store.writes() == []


async def test_cert_managers_delay_is_told_after_a_while_in_its_words() -> None:
    clock = Clock()
    store, reconciler = await running(ISSUED, clock)
    clock.now += LIFE * 2 / 3 + GRACE - timedelta(minutes=1)
    await reconciler.reconcile("team", "math")
    assert store.writes() == []
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    assert "does cert-manager run?" in store.expiring()["message"]

    pending = {"type": "Ready", "status": "False", "message": "ClusterIssuer vault not found"}
    about = {"name": "any", "ownerReferences": [{"uid": "math-identity-worker"}]}
    store.objects["CertificateRequest", "any"] = {"metadata": about, "status": {"conditions": [pending]}}
    clock.now += AGAIN
    await reconciler.reconcile("team", "math")
    assert "ClusterIssuer vault not found" in store.expiring()["message"]
    assert store.status["message"] == store.expiring()["message"]
    for kind, name in list(store.objects):
        if kind == "Certificate":
            issued(store.objects[kind, name], clock.now)
    clock.now += AGAIN
    await reconciler.reconcile("team", "math")
    assert (store.expiring()["status"], store.status["reason"]) == ("False", "Running")
    assert store.events()[-2:] == ["CertificateExpiring", "CertificateRenewed"]


async def test_a_cert_manager_that_was_removed_is_told_at_once() -> None:
    clock = Clock()
    store, reconciler = await running(ISSUED, clock)
    store.objects.pop(("Certificate", "math-identity-worker"))
    store.refused = {"Certificate"}
    clock.now += CERTIFICATES_EVERY
    await reconciler.reconcile("team", "math")
    assert store.expiring()["message"].startswith(
        "the certificate in Secret math-identity-worker that its pods have is not renewed: the API server refused"
    )


LOOKS = st.lists(st.sampled_from(["", "no issuer", "no cert-manager", "look", "fail", "suspend"]), max_size=12)


@settings(max_examples=100, deadline=None)
@given(looks=LOOKS)
def test_each_turn_makes_one_event_and_no_job_without_pods_has_a_certificate_that_ends(looks: list[str]) -> None:
    world, events = started(), []
    for look in looks:
        if look == "fail" and world.attempts:
            world.kuberay(deployment_status="Failed", job_status="FAILED")
        elif look == "suspend":
            world.spec["suspend"] = True
        elif look not in ("look", "fail") and plan(world.observed()).renew:
            held = world.condition("CertificateExpiring") == "True"
            decided = with_renewal(world.observed().job, plan(world.observed()), look, world.now)
            world.status = decided.status or world.status
            events = [note.reason for note in decided.events if "Certificate" in note.reason]
            assert events == ([] if held == bool(look) else ["CertificateExpiring" if look else "CertificateRenewed"])
            assert (world.condition("CertificateExpiring") == "True") == bool(look)
            again = with_renewal(world.observed().job, replace(decided, status=None, events=()), look, world.now)
            assert (again.status, again.events) == (None, ())
        world.reconcile()
        if world.phase in ("Restarting", "Suspended", "Failed"):
            assert world.condition("CertificateExpiring") != "True"
        world.now += timedelta(seconds=5)


async def test_an_operator_without_a_certificate_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store, _ = await running(Options(), clock)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    uncertified = Reconciler(store, ControllerRuns(), Options(), AUTHORITY, clock)
    await uncertified.reconcile("team", "math")
    assert (store.status["phase"], store.status["reason"]) == ("Running", "OperatorUncertified")
    assert "no certificate to ask the run with" in store.status["message"]
    assert str(tmp_path / "tls.key") in store.status["message"]
    assert store.events()[-1] == "OperatorUncertified"
    store.asked()
    await uncertified.reconcile("team", "math")
    assert store.writes() == []
    await Reconciler(store, Runs(), Options(), AUTHORITY, clock).reconcile("team", "math")
    assert store.status["reason"] == "Running"


def test_a_start_that_nobody_can_ask_ends_at_its_deadline_and_says_why() -> None:
    world = started(preRunningDeadlineSeconds=100)
    world.kuberay(deployment_status="Failed", job_status="FAILED")
    world.settle(rounds=2)
    world.run()
    world.report, world.unasked = None, "the operator has no certificate"
    notes = [note for _ in range(3) for note in world.reconcile().events]
    assert [note.reason for note in notes] == ["OperatorUncertified"]
    assert (world.phase, world.status["message"]) == ("Starting", "the operator has no certificate")
    world.now += timedelta(seconds=101)
    world.reconcile()
    assert world.status["reason"] == "PreRunningDeadlineExceeded"
    assert "the operator has no certificate" in world.status["message"]


def test_a_suspension_that_nobody_can_ask_for_says_why_and_ends_at_its_deadline() -> None:
    world = started(suspendDeadlineSeconds=60)
    world.spec["suspend"], world.report, world.unasked = True, None, "the operator has no certificate"
    world.reconcile()
    assert (world.phase, world.status["message"]) == ("Suspending", "the operator has no certificate")
    world.now += timedelta(seconds=61)
    world.settle(rounds=2)
    assert world.phase == "Suspended"
