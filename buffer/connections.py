"""Connections of redis-py that pack commands by hiredis, as its synchronous ones do.

A flush is one command with thousands of arguments; packing them in Python costs more than all else. The
asynchronous connections of redis-py have no such option, so their public `pack_command` is replaced.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import hiredis
import redis.exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from crescendo.common.errors import EnvironmentProblem, RequestError

CALL_S = 30.0
"""Limit of one answer, in seconds."""

_READ_BYTES = 2**18


class _Packing(AbstractConnection):
    def pack_command(self, *args: Any) -> list[bytes]:
        name, *rest = args
        return [hiredis.pack_command((*str(name).split(), *rest))]

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Hands a command to the transport; whoever reads the answer waits, with a deadline, for both.

        The inherited method waits until the bytes have left, in a task of its own: as long as a short call takes.
        """
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if self._writer is None:
            raise redis_errors.ConnectionError("the connection was closed")
        self._writer.write(command if isinstance(command, bytes) else b"".join(_bytes(command)))


def _bytes(command: str | Iterable[bytes]) -> Iterable[bytes]:
    return (command.encode(),) if isinstance(command, str) else command


class _TcpConnection(_Packing, Connection):
    pass


class _TlsConnection(_Packing, SSLConnection):
    pass


class _UnixConnection(_Packing, UnixDomainSocketConnection):
    pass


_FAST: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


def make_redis(url: str, *, client_name: str = "") -> "Redis":
    """A client that leaves retries to its caller.

    url: redis://, rediss:// (TLS) or unix://. Options follow as a query: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`
    name PEM files; `password_file` names a file with the password, `password_env` an environment variable, so that
    no secret stands in a run file. client_name: what the server's CLIENT LIST shows.
    Raises RequestError for a URL that isn't one, EnvironmentProblem for a password or certificate that isn't there.
    """
    plain, password = _take_password(url)
    try:
        pool: ConnectionPool = ConnectionPool.from_url(
            plain,
            socket_timeout=CALL_S,
            socket_connect_timeout=CALL_S / 3,
            socket_read_size=_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
            client_name=client_name or None,
            **({"password": password} if password is not None else {}),
        )
        pool.connection_class = _FAST[pool.connection_class]
        make_connection: Callable[[], AbstractConnection] = pool.make_connection
        make_connection()  # opens nothing, but refuses an option that there isn't
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"buffer URL is not valid: {error}.",
            field="buffer.url",
            fix="Write redis://host:port/0, rediss://user@host:port/0?password_file=...&ssl_ca_certs=... or "
            "unix:///path/to/socket.",
        ) from None
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        file = pool.connection_kwargs.get(option)
        if file and not Path(file).is_file():
            raise EnvironmentProblem(
                f"{option} {file} is not there.", field="buffer.url", fix="Mount it, or mend the URL."
            )
    return Redis.from_pool(pool)


def _take_password(url: str) -> tuple[str, str | None]:
    """The URL without our own options, and the password that they name; None: the URL's own."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in options if name not in ("password_file", "password_env")]
    if len(kept) == len(options):
        return url, None
    wanted = dict(options)
    plain = urlunsplit(parts._replace(query=urlencode(kept)))
    if "password_file" in wanted:
        try:
            return plain, Path(wanted["password_file"]).read_text().rstrip("\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"the buffer's password can't be read: {error}.", field="buffer.url", fix="Mount the secret there."
            ) from None
    if (password := os.environ.get(wanted["password_env"])) is None:
        raise EnvironmentProblem(
            f"the buffer's password should be in the environment variable {wanted['password_env']}, which is not set.",
            field="buffer.url",
            fix="Set it for every process of the run, or use password_file.",
        )
    return plain, password


def without_secrets(url: str) -> str:
    """The URL as messages may show it."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}", query=""))


def redirected(url: str, host: str, port: int) -> str:
    """The same URL at another node of a cluster."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}:{port}"))
