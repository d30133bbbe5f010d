"""Connections that carry bulk bytes beside gRPC: protobuf messages and raw bytes, with the same guards.

A message is preceded by its length. As with gRPC, a token opens a server on loopback, and on a cluster mTLS and the
caller's role do; a Unix socket is guarded by its file mode and the token. Every operation has a deadline. Used by
the weight channels of trainer and rollout; all of it blocks, so it runs in threads.
"""

import contextlib
import hmac
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from crescendo.common.errors import CrescendoError, DeadlineError, RequestError, WorkerLostError
from crescendo.common.rpc.guards import may_call
from crescendo.common.rpc.identity import SERVER_NAME, IdentityFiles, peer_identity
from crescendo.common.rpc.status import from_detail
from crescendo.proto.v1 import common_pb2

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Deadline:
    """A point in time (monotonic) that waits share."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Never below a millisecond: a socket's time-out of 0 would mean not to wait at all."""
        return max(0.001, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at


class Wire:
    """One connection. Raises DeadlineError and WorkerLostError (both retryable) and nothing of the socket's own."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.socket = connection
        self.peer = peer

    def send(self, message: Message, deadline: Deadline) -> None:
        """Sends one message."""
        data = message.SerializeToString()
        with self._translated(deadline):
            self.socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, kind: type[M], deadline: Deadline) -> M:
        """The next message; raises RequestError when it is none of that kind."""
        header = bytearray(_LENGTH.size)
        self.receive_into(memoryview(header), deadline)
        (size,) = _LENGTH.unpack(header)
        if size > MAX_MESSAGE_BYTES:
            raise RequestError(f"{self.peer} announces a message of {size} bytes; it may have {MAX_MESSAGE_BYTES}.")
        data = bytearray(size)
        self.receive_into(memoryview(data), deadline)
        try:
            return kind.FromString(bytes(data))
        except DecodeError:
            raise RequestError(f"{self.peer} sent something that is no {kind.__name__}.") from None

    def send_bytes(self, data: memoryview, deadline: Deadline) -> None:
        """Sends raw bytes."""
        with self._translated(deadline):
            self.socket.sendall(data)

    def receive_into(self, target: memoryview, deadline: Deadline) -> None:
        """Fills the target."""
        filled = 0
        for size in self.receive_parts(target, deadline):
            filled += size
        if filled < len(target):
            raise WorkerLostError(f"{self.peer} closed the connection.")

    def receive_parts(self, target: memoryview, deadline: Deadline) -> Iterator[int]:
        """Fills the target, and says how many bytes came with each read; ends early when the peer closes."""
        filled = 0
        while filled < len(target):
            with self._translated(deadline):
                size = self.socket.recv_into(target[filled:])
            if not size:
                return
            filled += size
            yield size

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    @contextlib.contextmanager
    def _translated(self, deadline: Deadline) -> Iterator[None]:
        if deadline.passed:
            raise DeadlineError(f"{self.peer} did not answer in time.")
        self.socket.settimeout(deadline.remaining_s)
        try:
            yield
        except TimeoutError:
            raise DeadlineError(f"{self.peer} did not answer in time.") from None
        except OSError as error:
            raise WorkerLostError(f"the connection to {self.peer} broke: {error}") from None


def connect(address: str, deadline: Deadline) -> Wire:
    """Connects to host:port, by mTLS where this process has an identity, or to a Unix socket (a path).

    Raises WorkerLostError when nobody listens there or the certificate is refused, DeadlineError in time.
    """
    files = IdentityFiles.from_environment()
    connection: socket.socket
    try:
        if address.startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(deadline.remaining_s)
            connection.connect(address)
            return Wire(connection, address)
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=deadline.remaining_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if files is not None:
            connection = _context(files, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(connection, server_hostname=SERVER_NAME)
        return Wire(connection, address)
    except TimeoutError:
        raise DeadlineError(f"{address} did not answer in time.") from None
    except OSError as error:
        raise WorkerLostError(f"{address} cannot be reached: {error}.") from None
    except ValueError:
        raise RequestError(f"the address {address!r} is neither host:port nor a path.", field="address") from None


class Guard:
    """Who may use a server: of the right role by certificate, else whoever has the token."""

    def __init__(self, token: str, roles: frozenset[str]) -> None:
        self._token = token
        self._roles = roles
        self._files = IdentityFiles.from_environment()

    @property
    def files(self) -> IdentityFiles | None:
        """This process's identity; None on loopback."""
        return self._files

    def accept(self, connection: socket.socket, peer: str, deadline: Deadline) -> Wire:
        """The server's side of a new connection, after the handshake; raises RequestError for a wrong caller."""
        if self._files is None or connection.family == socket.AF_UNIX:
            return Wire(connection, peer)
        connection.settimeout(deadline.remaining_s)
        try:
            secured = _context(self._files, ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True)
        except OSError as error:
            raise RequestError(f"{peer} failed the handshake: {error}") from None
        names = [value for kind, value in _alternative_names(secured) if kind == "URI"]
        found = peer_identity({"x509_subject_alternative_name": [name.encode() for name in names]})
        if found is None or not may_call(self._files.own(), found, self._roles):
            secured.close()
            raise RequestError(f"{found.uri if found else peer} may not ask for weights here.")
        return Wire(secured, peer)

    def check(self, token: str) -> None:
        """Raises RequestError for a wrong token where a token is what guards."""
        if self._files is None and not hmac.compare_digest(token.encode(), self._token.encode()):
            raise RequestError("the token is wrong.", field="token", fix="Use the run's token.")


def _alternative_names(secured: ssl.SSLSocket) -> list[tuple[str, str]]:
    certificate: dict[str, list[tuple[str, str]]] = secured.getpeercert() or {}  # type: ignore[assignment]
    return list(certificate.get("subjectAltName", ()))


def _context(files: IdentityFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.folder / "tls.crt", files.folder / "tls.key")
    context.load_verify_locations(Path(files.folder) / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def raise_error(error: common_pb2.ErrorDetail) -> None:
    """Raises the error that a message carries, if it carries one."""
    if error.code:
        raised: CrescendoError = from_detail(error)
        raise raised


__all__ = ["Deadline", "Guard", "Wire", "connect", "raise_error"]
