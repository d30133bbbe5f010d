"""Errors of Redis and of our scripts, as errors of common/errors.py: the one place where they are mapped."""

import redis.exceptions as redis_errors

from crescendo.common.errors import (
    BufferFullError,
    BufferStateError,
    CrescendoError,
    EnvironmentProblem,
    RequestError,
    StaleFenceError,
    WorkerLostError,
)

RETRIED = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError, OSError)
"""The server is away, starts up or fails over: trying again may help."""

_NOT_RETRIED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)


def may_retry(error: Exception) -> bool:
    """Whether the same call may succeed soon."""
    return isinstance(error, RETRIED) and not isinstance(error, _NOT_RETRIED)


def typed(error: Exception) -> CrescendoError:
    """The typed error for what redis-py raised."""
    text = str(error)
    code, _, rest = text.partition(" ")
    if code == "STALE":
        caller, seen = rest.split(" ")[:2]
        return StaleFenceError(
            f"fence ({caller}) is older than ({seen}), which the buffer has seen.",
            field="fence",
            fix="Stop: another controller has taken over the run.",
        )
    if code == "REFUSED":
        return RequestError(rest)
    if isinstance(error, redis_errors.OutOfMemoryError) or code == "OOM":
        return BufferFullError(
            "the buffer's server is at its memory limit; nothing was written.",
            field="buffer.max_memory_mib",
            fix="Raise maxmemory of the server, or wait until consumed groups are archived.",
        )
    if code == "MISCONF" or "MISCONF" in text:
        return BufferFullError(
            f"the buffer's server can't write to its disk: {text}",
            fix="Free disk space where the server keeps its append-only file; the run goes on by itself.",
        )
    if isinstance(error, redis_errors.NoPermissionError):
        return EnvironmentProblem(
            f"the buffer's user may not do this: {text}",
            field="buffer.url",
            fix="Grant the ACL user the keys `~{crescendo:*` and `+@read +@write +@scripting +@blocking +waitaof`.",
        )
    if isinstance(error, _NOT_RETRIED):
        return EnvironmentProblem(
            f"the buffer's server refused the login: {text}",
            field="buffer.url",
            fix="Put user and password into the URL: rediss://user:password@host:port/0.",
        )
    if isinstance(error, RETRIED):
        return WorkerLostError(
            f"the buffer's server can't be reached: {text or type(error).__name__}.",
            field="buffer.url",
            fix="Check that the server runs and that the address is right.",
        )
    return BufferStateError(f"the buffer's server answered: {text}")
