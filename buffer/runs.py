"""Runs on a server, seen from outside: what there is, how much of it, and its removal. For `crescendo buffer`.

A run is found by its schema key. It is held while a process of it is connected (connections carry the run's name), or
was active within HELD_S. Nothing here looks at a key of anything but runs, and nothing blocks the server: keys are
found by SCAN in small steps, and values freed in the background.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import exceptions as redis_errors

from crescendo.buffer import packing
from crescendo.buffer.client import Client, connect_node
from crescendo.buffer.connections import make_redis
from crescendo.buffer.keys import Keys
from crescendo.common.errors import BufferStateError, RequestError

HELD_S = 60.0
"""A run whose lease clock moved less long ago is held, even when the login may not list connections."""

_PATIENCE_S = 3.0  # a person waits
_STEP = 500  # keys a SCAN or UNLINK: well below a millisecond
_PREFIX = re.compile(r"\{crescendo:([A-Za-z0-9._-]{1,128})\}:schema")


@dataclass(frozen=True)
class RunOnServer:
    """A run as the server knows it.

    epoch, counter: the newest fence; commit: branch, iteration, manifest; counts: by state; payload_bytes: of prompts,
    segments and components; reserved_bytes: what open trajectories may still need; idle_s: since its lease clock was
    used; connections: of its processes, None when the login may not list them.
    """

    run_id: str
    schema: int
    epoch: int
    counter: int
    commit: tuple[int, int, str] | None
    counts: dict[str, int]
    payload_bytes: int
    reserved_bytes: int
    idle_s: float | None
    connections: int | None

    @property
    def held(self) -> bool:
        """Whether a process may still work on it."""
        return bool(self.connections) or (self.idle_s is not None and self.idle_s < HELD_S)


async def list_runs(url: str) -> list[str]:
    """Ids of the runs on a server, sorted; on a cluster, those of the node that the URL names."""
    client = Client(make_redis(url), Keys("none"), patience_s=_PATIENCE_S)  # this node, whatever it serves
    try:
        await client.retrying(client.redis.ping)
        found = [key async for key in _scan(client, "{crescendo:*}:schema")]
    finally:
        await client.close()
    matches = [_PREFIX.fullmatch(key.decode()) for key in found]
    return sorted({match.group(1) for match in matches if match})


async def describe(url: str, run_id: str) -> RunOnServer:
    """What the server holds of a run; raises RequestError when it holds nothing."""
    client = await connect_node(url, Keys(run_id), patience_s=_PATIENCE_S)
    try:
        return await _describe(client)
    finally:
        await client.close()


async def remove(url: str, run_id: str, *, force: bool = False) -> int:
    """Removes a run's keys; returns how many. Raises BufferStateError when it is held, unless forced."""
    keys = Keys(run_id)
    client = await connect_node(url, keys, patience_s=_PATIENCE_S)
    try:
        found = await _describe(client)
        if found.held and not force:
            raise BufferStateError(
                f"run {run_id} is held: {_why_held(found)}. Nothing was removed.",
                field="run_id",
                fix="Stop it first (`crescendo stop`), or use --force.",
            )
        # What still runs is fenced out first, and the fence goes last.
        await client.redis.hincrby(keys.fence, "epoch", 1)
        kept = {keys.fence.encode(), keys.schema.encode()}
        removed, batch = 0, list[bytes]()
        async for key in _scan(client, f"{keys.prefix}*"):
            if key not in kept:
                batch.append(key)
            if len(batch) == _STEP:
                removed += await _unlink(client, batch)
                batch = []
        return removed + await _unlink(client, batch) + await _unlink(client, sorted(kept))
    finally:
        await client.close()


async def _describe(client: Client) -> RunOnServer:
    keys = client.keys
    # Before anything else reads it: reading is use.
    idle_s = await _idle_s(client)
    schema = await client.retrying(lambda: client.redis.get(keys.schema))
    if schema is None:
        raise RequestError(
            f"there is no run {keys.run_id} on this server.", field="run_id", fix="`crescendo buffer ls` lists them."
        )
    fence, commit, counters = await client.read(
        [("HGETALL", keys.fence), ("HGETALL", keys.commit), ("HGETALL", keys.counts)]
    )
    committed = (int(commit[b"branch"]), int(commit[b"iteration"]), commit[b"manifest"].decode()) if commit else None
    return RunOnServer(
        run_id=keys.run_id,
        schema=int(schema) if schema.isdigit() else -1,
        epoch=int(fence.get(b"epoch", 0)),
        counter=int(fence.get(b"counter", 0)),
        commit=committed,
        counts=packing.state_counts(counters),
        payload_bytes=int(counters.get(b"bytes", 0)),
        reserved_bytes=int(counters.get(b"reserved", 0)),
        idle_s=idle_s,
        connections=await _connections(client),
    )


async def _idle_s(client: Client) -> float | None:
    """Seconds since the run's lease clock was used; None when it never was."""
    execute: Callable[..., Awaitable[Any]] = client.redis.execute_command
    try:
        answer = await execute("OBJECT IDLETIME", client.keys.lease_clock)
    except redis_errors.ResponseError:
        return None  # the server counts uses instead of time
    return None if answer is None else float(answer)


async def _connections(client: Client) -> int | None:
    """Connections of the run's processes; this one's own has no name."""
    try:
        listed = await client.redis.client_list()
    except redis_errors.ResponseError:
        return None
    return sum(one.get("name") == client.keys.client_name for one in listed)


async def _scan(client: Client, pattern: str) -> AsyncIterator[bytes]:
    """Keys like the pattern. A run id holds no character that patterns give a meaning to."""
    cursor = 0
    while True:
        cursor, found = await client.redis.scan(cursor, match=pattern, count=_STEP)
        for key in found:
            yield cast(bytes, key)
        if cursor == 0:
            return


async def _unlink(client: Client, keys: Sequence[bytes]) -> int:
    return int(await client.redis.unlink(*keys)) if keys else 0


def _why_held(found: RunOnServer) -> str:
    if found.connections:
        return f"{found.connections} connections of its processes are open"
    return f"it was active {found.idle_s:.0f} s ago"
