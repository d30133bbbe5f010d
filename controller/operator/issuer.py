"""cert-manager as it answers: whether a Certificate is issued as it is asked for, and if not, why.

Asked by reconcile.py before an attempt's pods are created, and by authority.py for the operator's own. What a
Certificate itself says is that it is not issued; why stands in the CertificateRequest that cert-manager makes of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from crescendo.controller.operator.api import Api
from crescendo.controller.operator.resource import Manifest


async def unissued(api: Api, asked: Manifest) -> str:
    """Why cert-manager has not issued what is asked for; empty when it has. Raises ApiFailure."""
    about = asked["metadata"]
    stored = await api.get("Certificate", about["name"], about["namespace"])
    if is_issued(asked, stored):
        return ""
    # cert-manager gives a request the labels of its Certificate.
    requests = await api.find("CertificateRequest", about["namespace"], about["labels"])
    return why_not(asked, stored, requests)


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
        told = (_condition(newest, "Ready"), _condition(stored, "Issuing"), _condition(stored, "Ready"))
        said = next((str(one["message"]) for one in told if one.get("message")), said)
    return (
        f"Certificate {about['name']} is not issued: {said.rstrip('.')}; see `kubectl describe clusterissuer {issuer}` "
        f"and `kubectl describe certificate {about['name']} -n {about['namespace']}`"
    )


def _names(certificate: Manifest) -> tuple[Any, Any]:
    spec = certificate["spec"]
    return spec.get("uris"), (spec.get("issuerRef") or {}).get("name")


def _condition(body: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (body.get("status") or {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})
