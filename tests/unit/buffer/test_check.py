"""What INFO must say for a server to be fit."""

from typing import Any

import pytest

from crescendo.buffer.check import problems
from crescendo.common.errors import BufferRefusedError, BufferStateError, CrescendoError, EnvironmentProblem

FIT: dict[str, Any] = {
    "redis_version": "7.2.4",
    "server_name": "valkey",
    "role": "master",
    "aof_enabled": 1,
    "maxmemory_policy": "noeviction",
    "aof_last_write_status": "ok",
}


def test_a_fit_server_has_no_problem() -> None:
    assert problems(FIT) == []
    assert problems(FIT | {"redis_version": "8.0.1"}) == []


@pytest.mark.parametrize(
    ("change", "kind", "fix"),
    [
        ({"redis_version": "7.0.15"}, EnvironmentProblem, "Upgrade"),
        ({"redis_version": "6.2.6"}, EnvironmentProblem, "Upgrade"),
        ({"role": "slave", "master_host": "db1", "master_port": 6379}, EnvironmentProblem, "db1:6379"),
        ({"aof_enabled": 0}, BufferStateError, "appendonly yes"),
        ({"maxmemory_policy": "allkeys-lru"}, BufferStateError, "maxmemory-policy noeviction"),
        ({"aof_last_write_status": "err"}, BufferRefusedError, "Free space"),
    ],
)
def test_each_problem_says_what_to_set(change: dict[str, Any], kind: type[CrescendoError], fix: str) -> None:
    (problem,) = problems(FIT | change)
    assert isinstance(problem, kind)
    assert fix in problem.fix
