"""What redis-py raises, as typed errors."""

import pytest
import redis.exceptions as redis_errors

from crescendo.buffer.failures import may_retry, typed
from crescendo.common import errors


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (redis_errors.ResponseError("STALE 1,0 2,0 script: x"), errors.StaleFenceError),
        (redis_errors.ResponseError("REFUSED group g is open."), errors.RequestError),
        (
            redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            errors.BufferRefusedError,
        ),
        (redis_errors.ResponseError("OOM command not allowed"), errors.BufferRefusedError),
        (
            redis_errors.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
            errors.BufferRefusedError,
        ),
        (redis_errors.NoPermissionError("this user has no permissions"), errors.EnvironmentProblem),
        (redis_errors.AuthenticationError("WRONGPASS"), errors.EnvironmentProblem),
        (redis_errors.ConnectionError("refused"), errors.WorkerLostError),
        (redis_errors.TimeoutError("late"), errors.WorkerLostError),
        (redis_errors.BusyLoadingError("loading"), errors.BufferRefusedError),
        (redis_errors.ReadOnlyError("You can't write against a read only replica."), errors.BufferRefusedError),
        (redis_errors.ResponseError("NOREPLICAS Not enough good replicas to write."), errors.BufferRefusedError),
        (redis_errors.ClusterDownError("CLUSTERDOWN The cluster is down"), errors.BufferRefusedError),
        (ConnectionResetError("reset"), errors.WorkerLostError),
        (redis_errors.ResponseError("WRONGTYPE"), errors.BufferStateError),
    ],
)
def test_errors_have_types_and_fixes(raised: Exception, expected: type[errors.CrescendoError]) -> None:
    found = typed(raised)
    assert type(found) is expected
    assert found.fix or expected in (errors.RequestError, errors.BufferStateError)


def test_only_what_may_pass_is_tried_again() -> None:
    again = (redis_errors.ConnectionError(), redis_errors.BusyLoadingError(), redis_errors.ReadOnlyError(), OSError())
    never = (redis_errors.AuthenticationError(), redis_errors.ResponseError("REFUSED x"), redis_errors.NoScriptError())
    assert [may_retry(error) for error in again] == [True] * len(again)
    assert [may_retry(error) for error in never] == [False] * len(never)


def test_a_stale_fence_names_both() -> None:
    error = typed(redis_errors.ResponseError("STALE 3,1 4,0"))
    assert "(3,1)" in error.message
    assert "(4,0)" in error.message
    assert error.message.startswith("fence")
