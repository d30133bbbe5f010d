"""Start-up checks of an external server: is it fit to hold a run?

`crescendo run` and `crescendo doctor` call `check_server` before anything starts. The check writes and removes
keys of its own under `{crescendo:check-...}:`, and changes no setting.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from crescendo.buffer import failures
from crescendo.buffer.client import connect_node
from crescendo.buffer.keys import Keys
from crescendo.buffer.permissions import script_commands
from crescendo.common.errors import BufferRefusedError, BufferStateError, CrescendoError, EnvironmentProblem

OLDEST = (7, 2)
"""WAITAOF and script flags need Redis 7.2, which every Valkey is based on."""


async def check_server(url: str, *, patience_s: float = 3.0) -> None:
    """Raises the first problem of the server at url: WorkerLostError, EnvironmentProblem or BufferStateError."""
    keys = Keys(f"check-{secrets.token_hex(8)}")
    client = await connect_node(url, keys, patience_s=patience_s)
    redis = client.redis
    try:
        info: dict[str, Any] = await client.retrying(lambda: redis.info("everything"))
        for problem in problems(info):
            raise problem
        await client.retrying(lambda: _try_commands(redis, keys))
    finally:
        await client.close()


def problems(info: dict[str, Any]) -> list[CrescendoError]:
    """What makes a server unfit, by its INFO."""
    found: list[CrescendoError] = []
    version = str(info.get("redis_version", "0"))
    name = str(info.get("server_name", "redis"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        found.append(
            EnvironmentProblem(
                f"the buffer's server is {name} {version}; it must be Redis or Valkey 7.2 or newer.",
                field="buffer.url",
                fix="Upgrade the server.",
            )
        )
    if str(info.get("role", "master")) != "master":
        found.append(
            EnvironmentProblem(
                "the buffer's server is a replica; a run must write to the primary.",
                field="buffer.url",
                fix=f"Use the primary: {info.get('master_host', 'its host')}:{info.get('master_port', '')}.",
            )
        )
    if int(info.get("aof_enabled", 0)) != 1:
        found.append(
            BufferStateError(
                "the buffer's server keeps no append-only file: a crash would lose the run's work.",
                field="appendonly",
                fix="Set `appendonly yes` in its configuration, or run `CONFIG SET appendonly yes`.",
            )
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        found.append(
            BufferStateError(
                f"the buffer's server has maxmemory-policy {policy}: it deletes keys when memory is short.",
                field="maxmemory-policy",
                fix="Set `maxmemory-policy noeviction`, or run `CONFIG SET maxmemory-policy noeviction`.",
            )
        )
    if str(info.get("aof_last_write_status", "ok")) != "ok":
        found.append(
            BufferRefusedError(
                "the buffer's server could not write its append-only file lately, and takes no writes until it can.",
                field="aof_last_write_status",
                fix="Free space on the disk that holds it.",
            )
        )
    return found


_MISSING = """#!lua flags=allow-oom
-- Names of commands (ARGV) that the caller may not run on KEYS[1].
local missing = {}
for _, command in ipairs(ARGV) do
  if not redis.acl_check_cmd(command, KEYS[1], KEYS[1], KEYS[1]) then
    missing[#missing + 1] = command
  end
end
redis.call('RPUSH', KEYS[1], 'x')
return missing
"""


async def _try_commands(redis: "Redis", keys: Keys) -> None:
    """Runs what clients run, and asks for what scripts run; typed errors name what is not permitted."""
    probe = keys.prefix + "probe"
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    sha = hashlib.sha1(_MISSING.encode(), usedforsecurity=False).hexdigest()
    try:
        for command in (
            ("SCRIPT LOAD", _MISSING),
            ("EVALSHA", sha, 1, probe, *script_commands()),
            ("BLPOP", probe, 1),
            ("SET", probe, "x"),
            ("GET", probe),
            ("ZRANGE", keys.groups("open"), 0, -1),
            ("DEL", probe),
        ):
            answer = await execute(*command)
            if command[0] == "EVALSHA" and answer:
                names = ", ".join(name.decode() for name in answer)
                raise redis_errors.NoPermissionError(f"it may not run {names} in a script")
        async with redis.client() as connection:
            on_one: Callable[..., Awaitable[Any]] = connection.execute_command
            await on_one("SET", probe, "x")
            await on_one("WAITAOF", 1, 0, 2000)
            await on_one("DEL", probe)
    except redis_errors.ResponseError as error:
        raise failures.typed(error) from error
