"""Errors of Redis and of our scripts, as errors of common/errors.py: the one place where they are mapped."""

import redis.exceptions as redis_errors

from crescendo.buffer.permissions import acl_rule
from crescendo.common.errors import (
    BufferRefusedError,
    BufferStateError,
    CrescendoError,
    EnvironmentProblem,
    RequestError,
    StaleFenceError,
    WorkerLostError,
)

RETRIED = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError, OSError)
"""The server is away, starts up or fails over: trying again may help within seconds."""

_NOT_RETRIED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

_DISK = "Free space on the disk that holds the server's append-only file; the run goes on by itself then."
_REFUSALS = {
    "OOM": (
        "it is at its memory limit",
        "buffer.max_memory_mib",
        "Raise `maxmemory` of the server, or let the archiver catch up: it trims what was trained on.",
    ),
    "MISCONF": ("it can't write to its disk", "buffer", _DISK),
    "READONLY": (
        "it is a replica now",
        "buffer.url",
        "Wait for the fail-over to end, or point the URL at the primary.",
    ),
    "NOREPLICAS": (
        "fewer replicas than `min-replicas-to-write` answer",
        "buffer.url",
        "Bring its replicas back, or lower `min-replicas-to-write`.",
    ),
    "LOADING": ("it still loads its data", "buffer.url", "Wait until it has read its append-only file."),
    "MASTERDOWN": ("it is a replica without its primary", "buffer.url", "Wait for the fail-over to end."),
    "CLUSTERDOWN": ("its cluster has no quorum", "buffer.url", "Bring the cluster's nodes back."),
}
"""Code of an error reply -> what it says, the field it concerns, what to do. Nothing was written."""

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
)
"""redis-py takes the code off the text of these."""


def may_retry(error: Exception) -> bool:
    """Whether the same call may succeed within seconds."""
    return isinstance(error, RETRIED) and not isinstance(error, _NOT_RETRIED)


def refusal(error: Exception) -> BufferRefusedError | None:
    """The typed error for a write that the server refuses for now; None for any other error."""
    text = str(error)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), text.partition(" ")[0])
    if code not in _REFUSALS:
        return None
    reason, field, fix = _REFUSALS[code]
    return BufferRefusedError(
        f"the buffer's server refuses writes: {reason} ({text}). Nothing was written.", field=field, fix=fix
    )


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
    if (refused := refusal(error)) is not None:
        return refused
    if isinstance(error, redis_errors.NoPermissionError):
        return EnvironmentProblem(
            f"the buffer's user may not do this: {text}",
            field="buffer.url",
            fix=f"Grant it what a run needs (`crescendo buffer acl` prints this too): {acl_rule()}",
        )
    if isinstance(error, _NOT_RETRIED):
        return EnvironmentProblem(
            f"the buffer's server refused the login: {text}",
            field="buffer.url",
            fix="Name user and password in the URL: rediss://user@host:port/0?password_file=/path/to/password.",
        )
    if isinstance(error, redis_errors.MovedError):
        return WorkerLostError(
            f"the run's hash slot has moved to another node of the buffer's cluster ({text}).",
            field="buffer.url",
            fix="Resume the run: it connects to the node that has the slot now.",
        )
    if isinstance(error, RETRIED):
        return WorkerLostError(
            f"the buffer's server can't be reached: {text or type(error).__name__}.",
            field="buffer.url",
            fix="Check that the server runs and that the address is right.",
        )
    return BufferStateError(f"the buffer's server answered: {text}")
