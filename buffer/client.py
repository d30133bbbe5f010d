"""The connection of one process to the buffer's server.

Lives from `open_client` to `close`. Every call has a deadline; when the server is away (the embedded one may be
restarted within seconds) calls are tried again with growing pauses until `patience_s` has passed. That is
safe because every change is idempotent. Errors leave as typed errors (failures.py).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from crescendo.buffer import failures
from crescendo.buffer.connections import CALL_S, make_redis, redirected
from crescendo.buffer.keys import SCHEMA_VERSION, Keys
from crescendo.buffer.scripts import script
from crescendo.common.errors import BufferStateError, DeadlineError, WorkerLostError
from crescendo.proto.v1 import common_pb2

PATIENCE_S = 20.0
"""How long calls are tried again when the server is away, in seconds."""

_WAIT_SLICE_S = 10.0  # below CALL_S, so that a blocked wait is never mistaken for a lost connection
_READS_PER_CALL = 256
_MAX_REDIRECTS = 4
_SEND_BYTES = 2**14  # small commands of a series go together

T = TypeVar("T")
Argument = str | int | float | bytes
Read = tuple[Literal["HGETALL", "GET"], str] | tuple[Literal["HGET"], str, str]
"""Command, key and, with HGET, field."""


class Client:
    """Runs scripts and reads for the run that `keys` names."""

    def __init__(self, redis: "Redis", keys: Keys, *, patience_s: float = PATIENCE_S) -> None:
        self.redis = redis
        self.keys = keys
        self._patience_s = patience_s
        self._aof = False

    async def run(self, name: str, fence: common_pb2.Fence | None, *arguments: Argument, durable: bool = False) -> Any:
        """Runs a script under a fence; `durable` waits until its writes are on the server's disk."""
        commands: list[Sequence[Argument]] = [(*self._head(name, fence), *arguments)]
        if durable and self._aof:  # WAITAOF answers for the writes of its own connection, so both go together
            commands.append(("WAITAOF", 1, 0, int(1000 * CALL_S / 2)))
        answer, *acknowledged = await self._exchange(commands, lambda _, one: one, name)
        if acknowledged and acknowledged[0][0] < 1:
            raise DeadlineError(
                f"the buffer's server did not bring {name} to its disk within {CALL_S / 2:.0f} s.",
                fix="Check the disk that holds the server's append-only file.",
            )
        return answer

    async def run_each(
        self,
        name: str,
        fence: common_pb2.Fence | None,
        calls: Iterable[Sequence[Argument]],
        take: Callable[[int, Any], T],
    ) -> list[T]:
        """Runs a script once for each call's arguments, in order, on one connection; take: reads the answer of a call.

        The next call is packed, and the last answer read, while the server works. After a lost connection all calls
        are sent again, so `take` may see an answer twice.
        """
        head = self._head(name, fence)
        return await self._exchange(((*head, *arguments) for arguments in calls), take, name)

    async def fields(self, wanted: Iterable[tuple[str, Sequence[str]]], take: Callable[[int, Any], T]) -> list[T]:
        """Reads fields of hashes as run_each runs calls; wanted: (key, names). No script copies them on their way."""
        return await self._exchange((("HMGET", key, *names) for key, names in wanted), take, "")

    async def _exchange(
        self, commands: Iterable[Sequence[Argument]], take: Callable[[int, Any], T], loads: str
    ) -> list[T]:
        """Sends commands down one connection; loads: the script among them, for a server that does not know it."""
        packed: list[bytes] = []
        remaining = iter(commands)

        async def attempt() -> list[T]:
            try:
                return await self._pipelined(packed, remaining, take)
            except redis_errors.NoScriptError:  # the server was restarted, or has never been asked for it
                await self._load(loads)
                return await self._pipelined(packed, remaining, take)

        return await self.retrying(attempt)

    async def _pipelined(
        self, packed: list[bytes], remaining: Iterator[Sequence[Argument]], take: Callable[[int, Any], T]
    ) -> list[T]:
        pool = self.redis.connection_pool
        get_connection: Callable[[], Awaitable[Any]] = pool.get_connection
        connection = await get_connection()
        unread = -1
        try:
            await _send(connection, packed, remaining)
            answers = []
            unread = len(packed)
            for number in range(len(packed)):
                unread -= 1  # an error is an answer too
                answers.append(take(number, await connection.read_response()))
            return answers
        finally:
            if unread:  # the next user of the connection would take what follows for its own answers
                await connection.disconnect(nowait=True)
            await pool.release(connection)

    async def read(self, reads: Sequence[Read]) -> list[Any]:
        """Answers of reads, in order."""
        answers: list[Any] = []
        for start in range(0, len(reads), _READS_PER_CALL):
            chunk = reads[start : start + _READS_PER_CALL]
            arguments: list[Argument] = []
            for command, key, *rest in chunk:
                arguments += (1 + len(rest), command, key.removeprefix(self.keys.prefix), *rest)
            raw = await self.run("read", None, *arguments)
            answers += [
                dict(zip(answer[::2], answer[1::2], strict=True)) if command == "HGETALL" else answer
                for (command, *_), answer in zip(chunk, raw, strict=True)
            ]
        return answers

    async def list_ids(self, key: str, limit: int) -> list[bytes]:
        """Members of a sorted set, lowest score first; limit 0: all."""
        execute: Callable[..., Awaitable[list[bytes]]] = self.redis.execute_command
        return await self.retrying(lambda: execute("ZRANGE", key, 0, limit - 1))

    async def wait_for_hint(self, key: str, wait_s: float) -> None:
        """Returns when the wake-up key has an element, or after wait_s."""
        limit_s = min(max(wait_s, 0.001), _WAIT_SLICE_S)
        await self.retrying(lambda: self.redis.blpop([key], timeout=limit_s))

    async def retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer; tried again while the server is away."""
        give_up = time.monotonic() + self._patience_s
        pause_s = 0.02
        while True:
            try:
                return await call()
            except (redis_errors.RedisError, OSError) as error:
                if not failures.may_retry(error) or time.monotonic() + pause_s > give_up:
                    raise failures.typed(error) from error
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, 1.0)

    async def open(self) -> None:
        """Checks the schema version, and sets it for a new run."""
        persistence: dict[str, Any] = await self.retrying(lambda: self.redis.info("persistence"))
        self._aof = int(persistence.get("aof_enabled", 0)) == 1
        # Read first: a run goes on while the server is too full for the smallest write.
        found = await self.retrying(lambda: self.redis.get(self.keys.schema))
        if found is None:
            await self.retrying(lambda: self.redis.set(self.keys.schema, SCHEMA_VERSION, nx=True))
            found = await self.retrying(lambda: self.redis.get(self.keys.schema))
        if found != str(SCHEMA_VERSION).encode():
            raise BufferStateError(
                f"the buffer of run {self.keys.run_id} has schema version {found!r}; this Crescendo reads version "
                f"{SCHEMA_VERSION}.",
                field="schema",
                fix="Continue the run with the Crescendo version that started it, or start a new run.",
            )

    async def close(self) -> None:
        """Ends the connections."""
        await self.redis.aclose()

    def _head(self, name: str, fence: common_pb2.Fence | None) -> tuple[Argument, ...]:
        """How a call of a script begins."""
        return ("EVALSHA", script(name).sha, 1, self.keys.fence, *_fence_arguments(fence))

    async def _load(self, name: str) -> None:
        execute: Callable[..., Awaitable[Any]] = self.redis.execute_command
        await execute("SCRIPT LOAD", script(name).text)


async def _send(connection: Any, packed: list[bytes], remaining: Iterator[Sequence[Argument]]) -> None:
    """Sends what is packed, then packs and sends what remains."""
    unsent = list(packed)
    for command in remaining:
        packed += connection.pack_command(*command)
        unsent.append(packed[-1])
        if sum(map(len, unsent)) >= _SEND_BYTES:
            await connection.send_packed_command(b"".join(unsent))
            unsent.clear()
            await asyncio.sleep(0)  # the transport writes at once, but answers are read by the loop
    if unsent:
        await connection.send_packed_command(b"".join(unsent))


def _fence_arguments(fence: common_pb2.Fence | None) -> tuple[int, int]:
    return (0, 0) if fence is None else (fence.epoch, fence.counter)


async def connect_node(url: str, keys: Keys, *, name: str = "", patience_s: float = PATIENCE_S) -> Client:
    """A client of the server; on a cluster, of the node that has the run's hash slot. Checks nothing.

    All keys of a run lie in one slot, so one node serves it; any node's first answer tells which.
    Raises RequestError for a bad URL, WorkerLostError when nothing answers.
    """
    for _ in range(_MAX_REDIRECTS):
        client = Client(make_redis(url, client_name=name), keys, patience_s=patience_s)
        try:
            await client.retrying(partial(client.redis.get, keys.schema))
        except WorkerLostError as error:
            await client.close()
            if not isinstance(moved := error.__cause__, redis_errors.MovedError):
                raise
            url = redirected(url, moved.host, moved.port)
        except BaseException:
            await client.close()
            raise
        else:
            return client
    raise BufferStateError(
        f"the buffer's cluster sends run {keys.run_id} from node to node.",
        field="buffer.url",
        fix="Check `CLUSTER SLOTS`.",
    )


async def open_client(url: str, run_id: str, *, patience_s: float = PATIENCE_S) -> Client:
    """Connects a process of a run, and checks that the server holds this schema version.

    Raises what `connect_node` raises, and BufferStateError for another schema version.
    """
    keys = Keys(run_id)
    client = await connect_node(url, keys, name=keys.client_name, patience_s=patience_s)
    try:
        await client.open()
    except BaseException:
        await client.close()
        raise
    return client
