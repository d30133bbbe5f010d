"""Judging through both services, in the jail that this machine has: each kind of tests, and programs that cheat."""

import json
from collections.abc import Iterator

import pytest

from crescendo.proto.v1 import common_pb2, reward_pb2
from tests.attacks.judging import judge_cases, vaults
from tests.integration.reward_processes import RewardProcesses

OPTIONS = {"workers": "2", "scorers": "code,code_r1", "regrade_share": "1", "sandbox_programs": "2"}
LOOP = "def check(candidate):\n    for x in range(5):\n        assert candidate(x) == x * x\ncheck(f)"
STDIO = json.dumps({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["1\n", "4\n", "9\n"]})
FUNCTION, PROGRAM = "def f(x):\n    return x * x", "x = int(input())\nprint(x * x)"
CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
CHEATS = ("exit_at_import", "always_equal", "forged_answers", "walked_frames", "patched_driver", "searched_memory")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcesses]:
    running = RewardProcesses(tmp_path_factory.mktemp("judge"), OPTIONS)
    yield running
    assert running.stop() == (0, 0)


def item(name: str, source: str, tests: str) -> reward_pb2.ScoreItem:
    text = f"<think>so</think>\n<answer>\n```python\n{source}\n```\n</answer>"
    chain = [reward_pb2.ScorerSpec(name=scorer, weight=1.0) for scorer in ("code", "code_r1")]
    return reward_pb2.ScoreItem(item_id=name, response=text.encode(), metadata={"tests": tests}, chain=chain)


async def score(services: RewardProcesses, items: list[reward_pb2.ScoreItem]) -> list[list[tuple[int, float]]]:
    client = services.client()
    request = reward_pb2.ScoreRequest(items=items, deadline_seconds=20.0)
    answer = await client.call(client.stub.Score, request, timeout_s=240.0)
    await client.close()
    assert not any(result.HasField("fault") for result in answer.results)
    return [[(part.verdict, part.raw) for part in result.components] for result in answer.results]


async def test_each_kind_of_tests(services: RewardProcesses) -> None:
    right, wrong = [(CORRECT, 1.0), (CORRECT, 1.1)], [(WRONG, 0.0), (WRONG, 0.1)]
    found = await score(
        services,
        [
            item("run", FUNCTION, LOOP),
            item("run-wrong", FUNCTION.replace("*", "+"), LOOP),
            item("stdio", PROGRAM, STDIO),
            item("stdio-wrong", PROGRAM.replace("*", "+"), STDIO),
        ],
    )
    assert found == [right, wrong, right, wrong]


async def test_programs_that_cheat(services: RewardProcesses) -> None:
    cheats = [case for case in judge_cases() if case.name in CHEATS]
    assert len(cheats) == len(CHEATS)
    tests = {vault.kind: vault.tests for vault in vaults()}
    found = await score(
        services, [item(f"{case.name}-{kind}", case.program, text) for case in cheats for kind, text in tests.items()]
    )
    assert found == [[(WRONG, 0.0), (WRONG, 0.1)]] * len(found)
