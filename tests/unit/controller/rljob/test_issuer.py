"""What cert-manager says of a Certificate, and what an RLJob's status makes of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crescendo.controller.operator.children.identity import certificate_request
from crescendo.controller.operator.issuer import is_as_asked, is_issued, wanted_since, why_not
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job

Manifest = dict[str, Any]
JOB = Job("math", "team", "uid-1", 1, datetime(2026, 1, 1, tzinfo=UTC), False, {}, {}, {})
NOW = datetime(2026, 1, 5, tzinfo=UTC)
ASKED = certificate_request(JOB, "worker", "vault", Options())


def stored(
    ready: str = "True", *, generation: int = 2, seen: int = 2, uid: str = "uid-1", issuer: str = "vault"
) -> Manifest:
    """The Certificate as the API server has it, defaults filled in."""
    spec = {**ASKED["spec"], "uris": [f"crescendo://team/{uid}/worker"], "revisionHistoryLimit": 1}
    spec["issuerRef"] = {"name": issuer, "kind": "ClusterIssuer", "group": "cert-manager.io"}
    said = {"type": "Ready", "status": ready, "observedGeneration": seen, "message": "Secret does not exist"}
    about = {**ASKED["metadata"], "uid": "c-1", "generation": generation}
    return {**ASKED, "metadata": about, "spec": spec, "status": {"conditions": [said]}}


def request(message: str, created: str = "2026-01-01T00:00:00Z", owner: str = "c-1") -> Manifest:
    about = {"creationTimestamp": created, "ownerReferences": [{"uid": owner}]}
    return {"metadata": about, "status": {"conditions": [{"type": "Ready", "status": "False", "message": message}]}}


@pytest.mark.parametrize(
    ("found", "issued"),
    [
        (stored(), True),
        (None, False),
        (stored("False"), False),
        (stored(generation=3), False),
        (stored(uid="uid-0"), False),
        (stored(issuer="another"), False),
        ({**stored(), "status": {}}, False),
    ],
    ids=["ready", "none", "not ready", "ready as it was asked for before", "an earlier job", "another issuer", "new"],
)
def test_only_what_is_asked_for_now_counts_as_issued(found: Manifest | None, issued: bool) -> None:
    assert is_issued(ASKED, found) is issued


def hours(number: float) -> str:
    return (NOW - timedelta(hours=number)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("status", "since_h"),
    [
        ({"renewalTime": hours(-1)}, None),
        ({}, None),
        ({"renewalTime": hours(3)}, 3),
        ({"renewalTime": hours(-50), "lastFailureTime": hours(1)}, 1),
        ({"conditions": [{"type": "Issuing", "status": "True", "lastTransitionTime": hours(5)}]}, 5),
        ({"conditions": [{"type": "Issuing", "status": "False", "lastTransitionTime": hours(5)}]}, None),
        ({"renewalTime": hours(2), "lastFailureTime": hours(1)}, 2),
    ],
    ids=["later", "nothing said", "due", "failed before its time", "under way", "not under way", "due and failed"],
)
def test_a_renewal_is_wanted_from_the_first_sign_on(status: Manifest, since_h: float | None) -> None:
    wanted = None if since_h is None else NOW - timedelta(hours=since_h)
    assert wanted_since({**stored(), "status": status}, NOW) == wanted


def test_a_certificate_says_what_is_asked_for_whatever_is_filled_in_and_nothing_else() -> None:
    assert is_as_asked(ASKED, stored(issuer="vault"))
    assert not is_as_asked(ASKED, stored(uid="uid-0"))
    edited = stored()
    edited["spec"]["privateKey"] = {"algorithm": "RSA", "size": 256, "rotationPolicy": "Always"}
    assert not is_as_asked(ASKED, edited)
    unowned = stored()
    unowned["metadata"] = {**unowned["metadata"], "ownerReferences": []}
    assert not is_as_asked(ASKED, unowned)


def test_what_is_ready_is_no_reason() -> None:
    issued = request("Certificate fetched from issuer successfully")
    issued["status"]["conditions"][0]["status"] = "True"
    assert "does cert-manager run?" in why_not(ASKED, stored(), [issued])


def test_the_newest_request_of_this_certificate_says_why_then_the_certificate_itself() -> None:
    requests = [
        request("policy refuses", "2026-01-02T00:00:00Z"),
        request("no issuer", "2026-01-01T00:00:00Z"),
        request("another's", "2026-01-03T00:00:00Z", owner="c-2"),
    ]
    said = why_not(ASKED, stored("False"), requests)
    assert said.startswith("Certificate math-identity-worker is not issued: policy refuses; see ")
    assert "`kubectl describe clusterissuer vault`" in said
    assert "`kubectl describe certificate math-identity-worker -n team`" in said
    assert "Secret does not exist" in why_not(ASKED, stored("False"), requests[2:])
    assert "does cert-manager run?" in why_not(ASKED, {**stored(), "status": {}}, [])
    assert "asked for now" in why_not(ASKED, None, [])
    assert "asked for now" in why_not(ASKED, stored(uid="uid-0"), requests)
