"""Folders with a certificate, as Secrets mount them."""

from datetime import UTC, datetime
from pathlib import Path

from crescendo.common.rpc.identity import SERVER_NAME, Identity
from crescendo.controller.operator.certificates import KeyPair, new_leaf


def identity_folder(folder: Path, identity: Identity, authority: KeyPair) -> Path:
    """The folder, made, with a leaf of a day, its key and the authority's certificate."""
    folder.mkdir(parents=True)
    leaf = new_leaf(authority, identity.uri, [SERVER_NAME], datetime.now(UTC), days=1)
    (folder / "tls.crt").write_bytes(leaf.certificate)
    (folder / "tls.key").write_bytes(leaf.key)
    (folder / "ca.crt").write_bytes(authority.certificate)
    return folder
