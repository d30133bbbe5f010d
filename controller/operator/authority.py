"""The operator's own authority, a Secret in its namespace that is made once, and the platform's own certificates.

The operator's leaf goes to the folder that CRESCENDO_IDENTITY names; reward service and console mount theirs. With
cert-manager all of them come from its issuer, as the jobs' do: services trust one authority alone.
"""

import base64
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.rpc.guards import PLATFORM
from crescendo.common.rpc.identity import SERVER_NAME, VARIABLE, Identity
from crescendo.controller.operator.api import Api
from crescendo.controller.operator.certificates import KeyPair, due, new_authority, new_leaf
from crescendo.controller.operator.children.identity import certificate, needs_renewal, secret
from crescendo.controller.operator.issuer import unissued
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Manifest

log = logging.getLogger(__name__)

AUTHORITY_SECRET: Final = "crescendo-authority"
OPERATOR: Final = "operator"
PLATFORM_ROLES: Final = ("reward", "console", "probe")
FILES: Final = ("ca.crt", "tls.key", "tls.crt")  # the certificate last: readers look at its time


async def load_authority(api: Api, options: Options) -> KeyPair:
    """The stored authority, or a new one; whoever creates it first wins. Raises EnvironmentProblem."""
    stored = await api.get("Secret", AUTHORITY_SECRET, options.namespace)
    if stored is None:
        fresh = new_authority(datetime.now(UTC))
        await api.create(_secret(_metadata(AUTHORITY_SECRET, options), fresh, fresh))
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
    if options.certificate_issuer:
        await _ask_issuer(api, options)
        return
    now = datetime.now(UTC)
    for role in PLATFORM_ROLES:
        about = _about(role, options)
        stored = await api.get("Secret", about["name"], options.namespace)
        if needs_renewal(stored, authority, now):
            await api.apply(_secret(about, _leaf(authority, role, now, options), authority))
    folder = os.environ.get(VARIABLE)
    if folder:
        _write_own(Path(folder), authority, now, options)


def _write_own(folder: Path, authority: KeyPair, now: datetime, options: Options) -> None:
    certificate = folder / "tls.crt"
    if certificate.exists() and not due(certificate.read_bytes(), authority.certificate, now):
        return
    leaf = _leaf(authority, OPERATOR, now, options)
    _write(folder, {"ca.crt": authority.certificate, "tls.key": leaf.key, "tls.crt": leaf.certificate})


async def _ask_issuer(api: Api, options: Options) -> None:
    """Asks cert-manager for all of them; takes the operator's own once it is issued, at this resync or a later one."""
    for role in (*PLATFORM_ROLES, OPERATOR):
        about, identity = _about(role, options), Identity(options.namespace, PLATFORM, role)
        asked = certificate(about, identity, [SERVER_NAME], options.certificate_issuer, options)
        await api.apply(asked)
        if role == OPERATOR and (why := await unissued(api, asked)):
            log.warning("certificates: %s", why)
    folder = os.environ.get(VARIABLE)
    stored = await api.get("Secret", _about(OPERATOR, options)["name"], options.namespace)
    data = (stored or {}).get("data") or {}
    if folder and all(data.get(name) for name in FILES):
        _write(Path(folder), {name: base64.b64decode(data[name]) for name in FILES})


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        path = folder / name
        if not path.exists() or path.read_bytes() != contents[name]:
            path.touch(mode=0o600)
            path.write_bytes(contents[name])


def _leaf(authority: KeyPair, role: str, now: datetime, options: Options) -> KeyPair:
    uri = Identity(options.namespace, PLATFORM, role).uri
    return new_leaf(authority, uri, [SERVER_NAME], now, options.trust_days)


def _about(role: str, options: Options) -> Manifest:
    return _metadata(f"crescendo-identity-{role}", options)


def _metadata(name: str, options: Options) -> Manifest:
    return {"name": name, "namespace": options.namespace, "labels": {"app.kubernetes.io/part-of": "crescendo"}}


def _secret(about: Manifest, pair: KeyPair, issuer: KeyPair) -> Manifest:
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": issuer.certificate}
    return secret(about, data, "kubernetes.io/tls")
