"""Who a process is on a cluster: a certificate for mTLS, with a role in its URI name.

`CRESCENDO_IDENTITY` names a folder with tls.crt, tls.key and ca.crt, as a Kubernetes Secret mounts it. The URI subject
alternative name is `crescendo://namespace/uid/role`; servers authorize by it. Without the variable, processes talk in
the clear on loopback, where a token guards them. Files are read again whenever a handshake needs them, so a renewed
certificate counts without a restart.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509

from crescendo.common.errors import EnvironmentProblem

VARIABLE: Final = "CRESCENDO_IDENTITY"
SERVER_NAME: Final = "crescendo.internal"
_URI: Final = re.compile(r"crescendo://([a-z0-9-]+)/([A-Za-z0-9-]+)/([a-z-]+)")


@dataclass(frozen=True)
class Identity:
    """Who the other side is. uid: of the job; empty for the platform's own services."""

    namespace: str
    uid: str
    role: str

    @property
    def uri(self) -> str:
        """As a certificate carries it."""
        return f"crescendo://{self.namespace}/{self.uid}/{self.role}"

    @classmethod
    def parse(cls, uri: str) -> "Identity | None":
        """From a certificate's URI name; None when it is not one of ours."""
        found = _URI.fullmatch(uri)
        return cls(*found.groups()) if found else None


@dataclass(frozen=True)
class IdentityFiles:
    """The folder with a process's certificate, key and authority."""

    folder: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "IdentityFiles | None":
        """The folder that CRESCENDO_IDENTITY names; None without it."""
        folder = environment.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    def read(self) -> tuple[bytes, bytes, bytes]:
        """(key, certificate, authority) in PEM; raises EnvironmentProblem."""
        try:
            return tuple((self.folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt"))  # type: ignore[return-value]
        except OSError as error:
            raise EnvironmentProblem(
                f"{VARIABLE} is {self.folder}, but {error.filename} cannot be read: {error.strerror}.",
                field=VARIABLE,
                fix="Mount the job's identity Secret there.",
            ) from None

    def stamp(self) -> int:
        """Changes when the certificate is renewed; 0 while it cannot be read."""
        try:
            return (self.folder / "tls.crt").stat().st_mtime_ns
        except OSError:
            return 0

    def own(self) -> Identity:
        """Who this process is; raises EnvironmentProblem when its certificate does not say."""
        certificate = x509.load_pem_x509_certificate(self.read()[1])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            found = Identity.parse(uri)
            if found is not None:
                return found
        raise EnvironmentProblem(
            f"{self.folder / 'tls.crt'} carries no crescendo:// identity.", field=VARIABLE, fix="Issue it again."
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """mTLS for a server: clients need a certificate of the same authority."""
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(), self._server_configuration, require_client_authentication=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """mTLS for a client."""
        key, certificate, authority = self.read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        key, certificate, authority = self.read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def peer_identity(auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
    """The caller of an RPC, from its certificate; None without one of ours."""
    for name in auth_context.get("x509_subject_alternative_name", ()):
        found = Identity.parse(name.decode("utf-8", "replace"))
        if found is not None:
            return found
    return None
