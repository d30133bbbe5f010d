"""Who the pods of a job are: a certificate for each role, and the buffer's password.

Roles: `controller` (head), `worker` (trainer and engines). Every leaf carries the fixed server name, since pods are
reached by address. With cert-manager (options.certificate_issuer) its Certificates are asked for instead.
"""

import base64
import secrets
from datetime import datetime
from typing import Final

from crescendo.common.rpc.identity import SERVER_NAME, Identity
from crescendo.controller.operator.certificates import KeyPair, due, leaf_end, new_leaf
from crescendo.controller.operator.children.pods import metadata
from crescendo.controller.operator.children.storage import BUFFER_PORT
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job, Manifest

ROLES: Final = ("controller", "worker")


def identity_name(job: Job, role: str) -> str:
    """The Secret of a role."""
    return f"{job.name}-identity-{role}"


def identity_secret(job: Job, role: str, authority: KeyPair, now: datetime, options: Options) -> Manifest:
    """A fresh certificate as a Secret."""
    uri = Identity(job.namespace, job.uid, role).uri
    leaf = new_leaf(authority, uri, [SERVER_NAME, *_names(job, role)], now, options.trust_days)
    data = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate}
    return _secret(job, identity_name(job, role), data, "kubernetes.io/tls")


def needs_renewal(stored: Manifest | None, authority: KeyPair, now: datetime) -> bool:
    """Whether a role's Secret is missing, damaged, old, or of another authority."""
    try:
        return due(_leaf(stored), authority.certificate, now)
    except ValueError:
        return True


def end(stored: Manifest | None) -> datetime | None:
    """When a Secret's certificate ends; None when it holds none that can be read."""
    try:
        return leaf_end(_leaf(stored))
    except ValueError:
        return None


def certificate_request(job: Job, role: str, issuer: str, options: Options) -> Manifest:
    """A cert-manager Certificate in place of our own. issuer: name of a ClusterIssuer."""
    about = metadata(job, identity_name(job, role), "identity")
    return certificate(
        about, Identity(job.namespace, job.uid, role), [SERVER_NAME, *_names(job, role)], issuer, options
    )


def certificate(about: Manifest, identity: Identity, names: list[str], issuer: str, options: Options) -> Manifest:
    """A cert-manager Certificate whose Secret has its name. about: its metadata."""
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": about,
        "spec": {
            "secretName": about["name"],
            "uris": [identity.uri],
            "dnsNames": names,
            "duration": f"{options.trust_days * 24}h",
            "renewBefore": f"{options.trust_days * 8}h",
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["client auth", "server auth", "digital signature"],
            "issuerRef": {"name": issuer, "kind": "ClusterIssuer"},
        },
    }


def buffer_secret(job: Job) -> Manifest:
    """A new password for the job's own buffer, as the server's configuration and as the client's file."""
    password = secrets.token_urlsafe(32)
    configuration = (
        f"requirepass {password}\nmaxclients 20000\nprotected-mode yes\ntcp-keepalive 60\nport {BUFFER_PORT}\n"
    )
    data = {"valkey.conf": configuration.encode(), "password": password.encode()}
    return _secret(job, f"{job.name}-buffer", data, "Opaque")


def _leaf(stored: Manifest | None) -> bytes:
    """A Secret's certificate, PEM; ValueError when it is no base64."""
    return base64.b64decode(((stored or {}).get("data") or {}).get("tls.crt", ""), validate=True)


def _names(job: Job, role: str) -> list[str]:
    return [f"{job.name}-controller.{job.namespace}.svc"] if role == "controller" else []


def _secret(job: Job, name: str, data: dict[str, bytes], kind: str) -> Manifest:
    return secret(metadata(job, name, "identity"), data, kind)


def secret(about: Manifest, data: dict[str, bytes], kind: str) -> Manifest:
    """A Secret. about: its metadata."""
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "type": kind, "data": encoded}
