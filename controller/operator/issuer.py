"""cert-manager as it answers: whether a Certificate is issued as it is asked for, and if not, why.

Asked by identities.py before an attempt's pods are created and while they run, and by authority.py for the operator's
own. What a Certificate itself says is that it is not issued; why stands in the CertificateRequest that cert-manager
makes of it. While a renewal fails a Certificate is Ready until its end: its times say that something is wrong.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from crescendo.controller.operator.api import Api
from crescendo.controller.operator.resource import Manifest, parse_time

# cert-manager tries again an hour after its first failure. With trustDays 1 six hours are left then.
GRACE: Final = timedelta(hours=2)


async def unissued(api: Api, asked: Manifest) -> str:
    """Why cert-manager has not issued what is asked for; empty when it has. Raises ApiFailure."""
    about = asked["metadata"]
    stored = await api.get("Certificate", about["name"], about["namespace"])
    if is_issued(asked, stored):
        return ""
    return why_not(asked, stored, await _requests(api, asked))


async def unrenewed(api: Api, asked: Manifest, stored: Manifest, now: datetime) -> str:
    """Why a renewal that is due since GRACE has not come; empty when none is. Raises ApiFailure."""
    since = wanted_since(stored, now)
    if since is None or now - since < GRACE:
        return ""
    return why_not(asked, stored, await _requests(api, asked))


def wanted_since(stored: Manifest, now: datetime) -> datetime | None:
    """Since when cert-manager tries to renew a certificate, or should; None when it has no reason to."""
    status, issuing = stored.get("status") or {}, _condition(stored, "Issuing")
    said = [status.get("renewalTime"), status.get("lastFailureTime")]
    if issuing.get("status") == "True":
        said.append(issuing.get("lastTransitionTime"))
    return min((begun for begun in map(parse_time, filter(None, said)) if begun <= now), default=None)


def is_as_asked(asked: Manifest, stored: Manifest) -> bool:
    """Whether a Certificate says what is asked for and goes with the same job; defaults may be filled in."""
    return _has(stored, asked)


def is_issued(asked: Manifest, stored: Manifest | None) -> bool:
    """Whether the Secret holds this very certificate: not one of an earlier job of that name, or of another issuer."""
    if stored is None or _names(stored) != _names(asked):
        return False
    ready = _condition(stored, "Ready")
    return ready.get("status") == "True" and ready.get("observedGeneration") == stored["metadata"].get("generation")


def why_not(asked: Manifest, stored: Manifest | None, requests: Iterable[Manifest]) -> str:
    """In words for people: cert-manager's own, and where to look."""
    about, issuer = asked["metadata"], asked["spec"]["issuerRef"]["name"]
    said = "does cert-manager run?"
    if stored is None or _names(stored) != _names(asked):
        said = "it is asked for now"
    else:
        uid = stored["metadata"].get("uid")
        own = [one for one in requests if any(it["uid"] == uid for it in one["metadata"].get("ownerReferences", ()))]
        newest = max(own, key=lambda one: str(one["metadata"].get("creationTimestamp", "")), default={})
        told = (_unready(newest), _condition(stored, "Issuing"), _unready(stored))
        said = next((str(one["message"]) for one in told if one.get("message")), said)
    return (
        f"Certificate {about['name']} is not issued: {said.rstrip('.')}; see `kubectl describe clusterissuer {issuer}` "
        f"and `kubectl describe certificate {about['name']} -n {about['namespace']}`"
    )


def _names(certificate: Manifest) -> tuple[Any, Any]:
    spec = certificate["spec"]
    return spec.get("uris"), (spec.get("issuerRef") or {}).get("name")


async def _requests(api: Api, asked: Manifest) -> list[Manifest]:
    # cert-manager gives a request the labels of its Certificate.
    return await api.find("CertificateRequest", asked["metadata"]["namespace"], asked["metadata"]["labels"])


def _has(stored: Any, asked: Any) -> bool:
    """Whether all that was asked for is stored."""
    if isinstance(asked, Mapping) and isinstance(stored, Mapping):
        return all(name in stored and _has(stored[name], asked[name]) for name in asked)
    return bool(stored == asked)


def _unready(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The condition Ready of what is not; what is ready says only that."""
    ready = _condition(body, "Ready")
    return {} if ready.get("status") == "True" else ready


def _condition(body: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (body.get("status") or {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})
