"""Connections of redis-py that pack commands by hiredis, as its synchronous ones do.

A flush is one command with thousands of arguments; packing them in Python costs more than all else. The
asynchronous connections of redis-py have no such option, so their public `pack_command` is replaced.
"""

from collections.abc import Iterable
from typing import Any

import hiredis
import redis.exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from crescendo.common.errors import RequestError

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


def make_redis(url: str) -> "Redis":
    """A client that leaves retries to its caller; raises RequestError for a URL that isn't one."""
    try:
        pool: ConnectionPool = ConnectionPool.from_url(
            url,
            socket_timeout=CALL_S,
            socket_connect_timeout=CALL_S / 3,
            socket_read_size=_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise RequestError(
            f"buffer URL is not valid: {error}.",
            field="buffer.url",
            fix="Write redis://host:port/0, rediss://user:password@host:port/0 or unix:///path/to/socket.",
        ) from None
    pool.connection_class = _FAST[pool.connection_class]
    return Redis.from_pool(pool)
