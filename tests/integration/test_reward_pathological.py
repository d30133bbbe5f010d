"""Responses made to break a grader: each costs one worker and one deadline at most, and its neighbours nothing."""

import time
from collections.abc import Iterator

import pytest

from crescendo.proto.v1 import common_pb2, reward_pb2
from tests.integration.reward_processes import EXACT, MATH, RewardProcesses, score_item

DEADLINE_S = 2.0
SLACK_S = 8.0
OPTIONS = {
    "workers": "2",
    "item_deadline_s": str(DEADLINE_S),
    "worker_memory_mib": "512",
    "regrade_share": "0",
    "scorers": "math_answer,reasoning_gym",
}
GYM = [reward_pb2.ScorerSpec(name="reasoning_gym", weight=1.0)]
COUNTDOWN = {"dataset": "countdown", "entry": '{"answer": "", "metadata": {"numbers": [9], "target": 9}}'}

PATHOLOGICAL: dict[str, str | bytes] = {
    "tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "tower in plain text": "The final answer is 9**9**9**9",
    "huge factorial": r"\boxed{99999999999!}",
    "huge power": r"\boxed{2^{10000000000}}",
    "large expansion": r"\boxed{(x+y+z)^{5000}-(x-y)^{5000}}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 2000 + "1" + "}" * 2001,
    "nested parentheses": r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
    "long sum": r"\boxed{1" + "+1" * 20_000 + "}",
    "many digits": r"\boxed{" + "9" * 200_000 + "}",
    "a megabyte of letters": "a" * 1_000_000,
    "a million braces": "{" * 1_000_000,
    "a million braces in dollars": "$" + "{" * 1_000_000 + "$",
    "a million dollars": "$" * 1_000_000,
    "many open boxes": r"\boxed{" * 100_000,
    "answer anchors": "answer " * 100_000,
    "numbers for the expression regex": "answer: " + "1 " * 200_000 + "=",
    "operators for the expression regex": "=" + "1+" * 100_000 + "x",
    "invalid UTF-8": b"\xff\xfe\xc3(\xa0\xa1" * 10_000 + rb"\boxed{1}",
    "NUL bytes": b"\x00" * 100_000 + rb"\boxed{\x00}",
    "surrogates": "\ud800\udfff" * 1000,
    "control characters": "\x1b[2J" * 1000 + r"\boxed{\x1b[2J}",
}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcesses]:
    running = RewardProcesses(tmp_path_factory.mktemp("reward"), OPTIONS)
    yield running
    running.stop()


async def grade(
    services: RewardProcesses, items: list[reward_pb2.ScoreItem]
) -> tuple[list[reward_pb2.ScoreResult], int]:
    """Results, and how many workers were lost meanwhile."""
    client, below = services.client(), services.executor_client()
    ask = reward_pb2.GetExecutorStatusRequest()
    before = await below.call(below.stub.GetStatus, ask, timeout_s=20.0)
    response = await client.call(client.stub.Score, reward_pb2.ScoreRequest(items=items), timeout_s=120.0)
    after = await below.call(below.stub.GetStatus, ask, timeout_s=20.0)
    await client.close()
    await below.close()
    return list(response.results), after.num_killed + after.num_recycled - before.num_killed - before.num_recycled


@pytest.mark.parametrize("name", sorted(PATHOLOGICAL))
async def test_one_among_good_ones(services: RewardProcesses, name: str) -> None:
    good = [score_item(str(i), f"#{i}$", str(i), EXACT) for i in range(6)]
    items = [*good[:3], score_item("bad", PATHOLOGICAL[name], "7"), *good[3:]]
    started_s = time.monotonic()
    results, num_lost = await grade(services, items)
    assert time.monotonic() - started_s < DEADLINE_S + SLACK_S
    assert num_lost <= 1
    bad = results.pop(3)
    assert [result.components[0].verdict for result in results] == [common_pb2.VERDICT_CORRECT] * 6
    (component,) = bad.components
    assert (component.raw, bad.HasField("fault")) == (0.0, False)
    assert component.verdict != common_pb2.VERDICT_CORRECT
    assert len(component.detail) <= 256
    assert component.detail.isprintable()


async def test_all_of_them_in_one_batch(services: RewardProcesses) -> None:
    items: list[reward_pb2.ScoreItem] = []
    for name, response in PATHOLOGICAL.items():
        items += [score_item(f"good {name}", "#9$", "9", EXACT), score_item(name, response, "7", MATH)]
    started_s = time.monotonic()
    results, num_lost = await grade(services, items)
    assert time.monotonic() - started_s < len(PATHOLOGICAL) * DEADLINE_S + SLACK_S
    assert num_lost <= len(PATHOLOGICAL)
    for item, result in zip(items, results, strict=True):
        assert result.item_id == item.item_id
        assert result.components[0].raw == float(item.item_id.startswith("good"))


async def test_a_tower_in_a_procedural_task(services: RewardProcesses) -> None:
    bomb = score_item("bad", "<answer>9**9**9**9</answer>", "", GYM)
    bomb.metadata.update(COUNTDOWN)
    good = score_item("good", "<answer>9</answer>", "", GYM)
    good.metadata.update(COUNTDOWN)
    request = reward_pb2.ScoreRequest(items=[good, bomb])
    client = services.client()
    response = await client.call(client.stub.Score, request, timeout_s=120.0)
    await client.close()
    verdicts = [result.components[0].verdict for result in response.results]
    assert verdicts[0] == common_pb2.VERDICT_CORRECT
    assert verdicts[1] == common_pb2.VERDICT_TIMEOUT
