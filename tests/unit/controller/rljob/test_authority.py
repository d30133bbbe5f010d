"""The platform's certificates: of the operator's own authority, or of cert-manager's issuer, never of both."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from crescendo.common.rpc.identity import VARIABLE, IdentityFiles
from crescendo.controller.operator.authority import PLATFORM_ROLES, load_authority, renew_platform
from crescendo.controller.operator.certificates import new_authority, new_leaf
from crescendo.controller.operator.options import Options

Manifest = dict[str, Any]
OWN = Options()
ISSUED = replace(OWN, certificate_issuer="vault")


class Store:
    """The API server's Secrets and Certificates; cert-manager answers when `issue` is called."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.issuer = new_authority(datetime.now(UTC), "the issuer's")

    async def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        return self.objects.get((kind, name))

    async def apply(self, manifest: Manifest) -> Manifest:
        self.objects[manifest["kind"], manifest["metadata"]["name"]] = manifest
        return manifest

    async def create(self, manifest: Manifest) -> None:
        self.objects.setdefault((manifest["kind"], manifest["metadata"]["name"]), manifest)

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        return [body for (found, _), body in self.objects.items() if found == kind]

    async def delete(self, kind: str, name: str, namespace: str) -> None:
        raise NotImplementedError

    async def put_status(self, name: str, namespace: str, version: str, status: Manifest) -> None:
        raise NotImplementedError

    async def patch(self, kind: str, name: str, namespace: str, operations: list[Manifest]) -> None:
        raise NotImplementedError

    def issue(self) -> None:
        """What cert-manager does with every Certificate."""
        for (kind, _), asked in list(self.objects.items()):
            if kind != "Certificate":
                continue
            spec = asked["spec"]
            leaf = new_leaf(self.issuer, spec["uris"][0], spec["dnsNames"], datetime.now(UTC), days=7)
            files = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": self.issuer.certificate}
            data = {name: base64.b64encode(content).decode() for name, content in files.items()}
            self.objects["Secret", spec["secretName"]] = {"metadata": asked["metadata"], "data": data}

    def certificate(self, role: str) -> x509.Certificate:
        data = self.objects["Secret", f"crescendo-identity-{role}"]["data"]
        return x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "identity"))
    return tmp_path / "identity"


async def test_the_operators_own_authority_signs_for_the_platform_and_for_itself(own_folder: Path) -> None:
    store = Store()
    authority = await load_authority(store, OWN)
    await renew_platform(store, authority, OWN)
    root = x509.load_pem_x509_certificate(authority.certificate)
    for role in PLATFORM_ROLES:
        store.certificate(role).verify_directly_issued_by(root)
    assert IdentityFiles(own_folder).own().role == "operator"
    before = dict(store.objects)
    await renew_platform(store, authority, OWN)
    assert store.objects == before
    assert (await load_authority(store, OWN)) == authority


async def test_with_an_issuer_nobody_gets_a_certificate_of_another_authority(
    own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    authority = await load_authority(store, ISSUED)
    await renew_platform(store, authority, ISSUED)
    asked = {name: found for (kind, name), found in store.objects.items() if kind == "Certificate"}
    assert set(asked) == {f"crescendo-identity-{role}" for role in (*PLATFORM_ROLES, "operator")}
    assert {one["spec"]["issuerRef"]["name"] for one in asked.values()} == {"vault"}
    assert {name for kind, name in store.objects if kind == "Secret"} == {"crescendo-authority"}
    assert IdentityFiles(own_folder).stamp() == 0
    assert "crescendo-identity-operator is not issued" in caplog.text
    assert "kubectl describe clusterissuer vault" in caplog.text

    store.issue()
    await renew_platform(store, authority, ISSUED)
    files = IdentityFiles(own_folder)
    assert files.own().role == "operator"
    assert files.read()[2] == store.issuer.certificate
    assert (own_folder / "tls.key").stat().st_mode & 0o077 == 0
    stamp = files.stamp()
    await renew_platform(store, authority, ISSUED)
    assert files.stamp() == stamp
    store.issue()
    await renew_platform(store, authority, ISSUED)
    assert files.stamp() != stamp
