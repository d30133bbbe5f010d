"""Chains with programs through both services: worker, sandbox, worker; and what becomes of them when parts fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crescendo.proto.v1 import common_pb2, reward_pb2
from tests.integration.reward_processes import RewardProcesses, is_running, wait_until

OPTIONS = {"workers": "1", "scorers": "code,format,math_answer", "regrade_share": "0", "sandbox_programs": "2"}
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\n"
RIGHT, WRONG, FORGED = "return x * x", "return x + x", "import os; print('passed'); os._exit(0)"
CHAIN = [
    reward_pb2.ScorerSpec(name="format", weight=0.1),
    reward_pb2.ScorerSpec(name="code", weight=1.0),
    reward_pb2.ScorerSpec(name="code", weight=0.5, options={"reward": "fraction"}),
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcesses]:
    running = RewardProcesses(tmp_path_factory.mktemp("programs"), OPTIONS)
    yield running
    pids = [process.pid for process in running.descendants()]
    assert running.stop() == (0, 0)
    wait_until(lambda: not any(is_running(pid) for pid in pids), 20.0)


def code_item(name: str, body: str, tests: str = "") -> reward_pb2.ScoreItem:
    given = tests or json.dumps({"functional": CHECK, "entry_point": "f"})
    text = f"<think>easy</think><answer>\n```python\ndef f(x):\n    {body}\n```\n</answer>"
    return reward_pb2.ScoreItem(item_id=name, response=text.encode(), metadata={"tests": given}, chain=CHAIN)


async def score(services: RewardProcesses, items: list[reward_pb2.ScoreItem]) -> list[reward_pb2.ScoreResult]:
    client = services.client()
    request = reward_pb2.ScoreRequest(items=items, deadline_seconds=10.0)
    answer = await client.call(client.stub.Score, request, timeout_s=120.0)
    await client.close()
    return list(answer.results)


async def test_programs_run_in_the_sandbox_between_two_steps_of_a_worker(services: RewardProcesses) -> None:
    plain = reward_pb2.ScoreItem(
        item_id="math", response=rb"\boxed{2}", gold_answers=["2"], chain=[reward_pb2.ScorerSpec(name="math_answer")]
    )
    right, wrong, forged, math = await score(
        services, [code_item("right", RIGHT), code_item("wrong", WRONG), code_item("forged", FORGED), plain]
    )
    assert [component.raw for component in right.components] == [1.0, 1.0, 1.0]
    assert [component.verdict for component in right.components][1] == common_pb2.VERDICT_CORRECT
    assert [component.raw for component in wrong.components] == [1.0, 0.0, 0.5]
    assert [component.raw for component in forged.components] == [1.0, 0.0, 0.0]
    assert {right.jail, wrong.jail} <= {"landlock", "namespaces", "runsc"}
    assert (math.jail, math.components[0].raw) == ("process", 1.0)


async def test_the_sandbox_is_reported(services: RewardProcesses) -> None:
    below = services.executor_client()
    status = await below.call(below.stub.GetStatus, reward_pb2.GetExecutorStatusRequest(), timeout_s=20.0)
    await below.close()
    assert status.jail in {"landlock", "namespaces", "runsc"}
    assert status.boundary in {"shared-kernel", "gvisor", "kata"}


async def test_code_below_the_floor_does_not_run(tmp_path: Path) -> None:
    strict = RewardProcesses(tmp_path, {**OPTIONS, "sandbox_floor": "kata/runsc"})
    (result,) = await score(strict, [code_item("a", RIGHT)])
    strict.stop()
    assert [component.verdict for component in result.components[1:]] == [common_pb2.VERDICT_UNSUPPORTED] * 2
    assert [component.raw for component in result.components[1:]] == [0.0, 0.0]


async def test_tests_that_cannot_be_read_are_the_datas_fault(services: RewardProcesses) -> None:
    (result,) = await score(services, [code_item("a", RIGHT, tests="{nonsense")])
    assert result.components[1].verdict == common_pb2.VERDICT_UNSUPPORTED


async def test_a_killed_zygote_of_the_sandbox_costs_no_score(services: RewardProcesses) -> None:
    for process in services.descendants():
        if "sandbox" in " ".join(process.cmdline()):
            psutil.Process(process.pid).kill()
    (result,) = await score(services, [code_item("a", RIGHT)])
    assert [component.raw for component in result.components] == [1.0, 1.0, 1.0]
