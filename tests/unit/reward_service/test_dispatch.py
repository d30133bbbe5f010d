"""The reward process's rules, over an executor that lives in memory."""

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from crescendo.common.errors import CrescendoError, RequestError, WorkerLostError
from crescendo.common.rpc import to_detail
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.dispatch import MAX_CHUNK_ITEMS, Dispatcher, checked, chunks
from crescendo.reward_service.executors import Graded

CHAIN = [reward_pb2.ScorerSpec(name="exact_match", weight=0.5)]
Answer = Callable[[reward_pb2.ScoreItem, bool, int], reward_pb2.ScoreResult]


def item(name: str, response: bytes = b"1") -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(item_id=name, response=response, gold_answers=["1"], chain=CHAIN)


def result(name: str, raw: float = 1.0) -> reward_pb2.ScoreResult:
    verdict = common_pb2.VERDICT_CORRECT if raw else common_pb2.VERDICT_WRONG
    component = common_pb2.RewardComponent(name="exact_match", raw=raw, weight=0.5, verdict=verdict)
    return reward_pb2.ScoreResult(item_id=name, components=[component])


def fault(name: str, error: CrescendoError) -> reward_pb2.ScoreResult:
    return reward_pb2.ScoreResult(item_id=name, fault=to_detail(error))


class MemoryExecutor:
    """Answers each item by a function of (item, fresh, how often it was asked)."""

    def __init__(self, answer: Answer) -> None:
        self.calls: list[tuple[list[str], bool]] = []
        self.avoided: list[str] = []
        self._answer = answer
        self._asked: dict[str, int] = {}

    async def execute(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float, *, fresh: bool, avoid: str
    ) -> Graded:
        await asyncio.sleep(0)
        self.calls.append(([given.item_id for given in items], fresh))
        self.avoided.append(avoid)
        results = []
        for given in items:
            self._asked[given.item_id] = self._asked.get(given.item_id, 0) + 1
            results.append(self._answer(given, fresh, self._asked[given.item_id]))
        return Graded(results, f"executor-{len(self.calls)}")


def dispatcher(answer: Answer, attempts: int = 3, share: float = 0.0) -> tuple[Dispatcher, MemoryExecutor]:
    executor = MemoryExecutor(answer)
    return Dispatcher(executor, attempts, share, random.Random(0)), executor


async def test_only_faults_are_tried_again_and_in_fresh_workers() -> None:
    def answer(given: reward_pb2.ScoreItem, fresh: bool, asked: int) -> reward_pb2.ScoreResult:
        is_lost = given.item_id == "b" and asked == 1
        return fault("b", WorkerLostError("killed")) if is_lost else result(given.item_id)

    scoring, executor = dispatcher(answer)
    results = await scoring.score([item("a"), item("b"), item("c")], 1.0, 10.0)
    assert [r.item_id for r in results] == ["a", "b", "c"]
    assert not any(r.HasField("fault") for r in results)
    assert executor.calls == [(["a", "b", "c"], False), (["b"], True)]
    assert executor.avoided == ["", "executor-1"]
    assert (scoring.counters.num_scored, scoring.counters.num_faults) == (3, 0)
    assert scoring.counters.verdicts == {("exact_match", "correct"): 3}


async def test_a_fault_that_stays_is_no_score() -> None:
    scoring, executor = dispatcher(lambda given, *_: fault(given.item_id, WorkerLostError("killed")), attempts=3)
    (only,) = await scoring.score([item("a")], 1.0, 10.0)
    assert only.fault.code == "WorkerLostError"
    assert not only.components
    assert len(executor.calls) == 3
    assert scoring.counters.num_faults == 1


async def test_a_fault_that_is_final_is_not_tried_again() -> None:
    scoring, executor = dispatcher(lambda given, *_: fault(given.item_id, RequestError("no")))
    await scoring.score([item("a")], 1.0, 10.0)
    assert len(executor.calls) == 1


async def test_a_share_of_correct_results_is_graded_again() -> None:
    scoring, executor = dispatcher(lambda given, *_: result(given.item_id), share=0.25)
    await scoring.score([item(str(i)) for i in range(400)], 1.0, 10.0)
    await scoring.close(5.0)
    assert 60 < scoring.counters.num_regraded < 140
    assert scoring.counters.num_disagreements == 0
    assert executor.calls[-1][1]


async def test_wrong_results_are_not_graded_again() -> None:
    scoring, executor = dispatcher(lambda given, *_: result(given.item_id, 0.0), share=1.0)
    await scoring.score([item("a")], 1.0, 10.0)
    await scoring.close(5.0)
    assert len(executor.calls) == 1


async def test_a_disagreement_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    scoring, _ = dispatcher(lambda given, fresh, _asked: result(given.item_id, 0.0 if fresh else 1.0), share=1.0)
    (only,) = await scoring.score([item("tampered")], 1.0, 10.0)
    await scoring.close(5.0)
    assert only.components[0].raw == 1.0
    assert scoring.counters.num_disagreements == 1
    assert "tampered" in caplog.text


async def test_one_failed_chunk_does_not_lose_the_others() -> None:
    names = [f"i{i}" for i in range(MAX_CHUNK_ITEMS + 1)]

    def answer(given: reward_pb2.ScoreItem, fresh: bool, asked: int) -> reward_pb2.ScoreResult:
        if given.item_id == names[-1]:
            raise WorkerLostError("gone")
        return result(given.item_id)

    scoring, _ = dispatcher(answer)
    results = await scoring.score([item(name) for name in names], 1.0, 10.0)
    assert [r.item_id for r in results] == names
    assert [r.item_id for r in results if r.fault.retryable] == [names[-1]]


async def test_nothing_answered_is_an_error() -> None:
    def answer(given: reward_pb2.ScoreItem, fresh: bool, asked: int) -> reward_pb2.ScoreResult:
        raise WorkerLostError("gone")

    scoring, _ = dispatcher(answer)
    with pytest.raises(WorkerLostError, match="gone"):
        await scoring.score([item("a")], 1.0, 10.0)


@pytest.mark.parametrize(
    "forged",
    [
        result("other"),
        result("a", 2.0),
        result("a", float("nan")),
        reward_pb2.ScoreResult(item_id="a"),
        reward_pb2.ScoreResult(item_id="a", components=[common_pb2.RewardComponent(name="exact_match", weight=9.0)]),
        reward_pb2.ScoreResult(item_id="a", components=[common_pb2.RewardComponent(name="format", weight=0.5)]),
    ],
)
def test_a_result_that_does_not_fit_is_a_fault(forged: reward_pb2.ScoreResult) -> None:
    found = checked(item("a"), forged)
    assert found.fault.retryable
    assert not found.components
    assert found.item_id == "a"


def test_chunks_are_bounded_in_items_and_bytes() -> None:
    assert chunks([]) == []
    assert [len(part) for part in chunks([item("a")] * (2 * MAX_CHUNK_ITEMS + 1))] == [MAX_CHUNK_ITEMS] * 2 + [1]
    large = item("b", b"x" * (20 << 20))
    assert [len(part) for part in chunks([large, large, item("a")])] == [1, 2]
