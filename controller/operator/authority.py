"""The operator's own authority, a Secret in its namespace that is made once, and the platform's own certificates.

The operator's leaf goes to the folder that CRESCENDO_IDENTITY names; reward, executor and console mount theirs.
"""

import base64
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.rpc.guards import PLATFORM
from crescendo.common.rpc.identity import SERVER_NAME, VARIABLE, Identity
from crescendo.controller.operator.api import Api
from crescendo.controller.operator.certificates import KeyPair, due, new_authority, new_leaf
from crescendo.controller.operator.children.identity import needs_renewal, secret
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Manifest

AUTHORITY_SECRET: Final = "crescendo-authority"
PLATFORM_ROLES: Final = ("reward", "console", "probe")


async def load_authority(api: Api, options: Options) -> KeyPair:
    """The stored authority, or a new one; whoever creates it first wins. Raises EnvironmentProblem."""
    stored = await api.get("Secret", AUTHORITY_SECRET, options.namespace)
    if stored is None:
        fresh = new_authority(datetime.now(UTC))
        await api.create(_secret(AUTHORITY_SECRET, fresh, options.namespace, fresh))
        stored = await api.get("Secret", AUTHORITY_SECRET, options.namespace)
    data = (stored or {}).get("data") or {}
    try:
        return KeyPair(
            base64.b64decode(data["tls.crt"], validate=True), base64.b64decode(data["tls.key"], validate=True)
        )
    except (KeyError, ValueError) as error:
        raise EnvironmentProblem(
            f"Secret {options.namespace}/{AUTHORITY_SECRET} is damaged ({error}).",
            fix="Restore it, or delete it: every job then gets new certificates within a resync.",
        ) from None


async def renew_platform(api: Api, authority: KeyPair, options: Options) -> None:
    """Certificates of the platform's services, where missing or old; the operator's own goes to its folder."""
    now = datetime.now(UTC)
    for role in PLATFORM_ROLES:
        name = f"crescendo-identity-{role}"
        stored = await api.get("Secret", name, options.namespace)
        if needs_renewal(stored, authority, now):
            await api.apply(_secret(name, _leaf(authority, role, now, options), options.namespace, authority))
    folder = os.environ.get(VARIABLE)
    if folder:
        _write_own(Path(folder), authority, now, options)


def _write_own(folder: Path, authority: KeyPair, now: datetime, options: Options) -> None:
    certificate = folder / "tls.crt"
    if certificate.exists() and not due(certificate.read_bytes(), authority.certificate, now):
        return
    folder.mkdir(parents=True, exist_ok=True)
    leaf = _leaf(authority, "operator", now, options)
    for name, content in (("ca.crt", authority.certificate), ("tls.key", leaf.key), ("tls.crt", leaf.certificate)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)


def _leaf(authority: KeyPair, role: str, now: datetime, options: Options) -> KeyPair:
    uri = Identity(options.namespace, PLATFORM, role).uri
    return new_leaf(authority, uri, [SERVER_NAME], now, options.trust_days)


def _secret(name: str, pair: KeyPair, namespace: str, issuer: KeyPair) -> Manifest:
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": issuer.certificate}
    about = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "crescendo"}}
    return secret(about, data, "kubernetes.io/tls")
