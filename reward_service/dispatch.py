"""Scoring as the reward process does it: chunks to the executor, faults again, and a share graded twice.

Model text passes through as bytes. What comes back is checked before it counts: a worker that was taken over
by a response could say anything.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.common.rpc import to_detail
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.executors import Executor
from crescendo.reward_service.scorers import WORKER_SCORERS

log = logging.getLogger(__name__)

MAX_CHUNK_ITEMS = 512
MAX_CHUNK_BYTES = 32 << 20
MAX_PENDING_REGRADES = 2048  # items; beyond that a drawn item is not graded again
MARGIN_S = 30.0
DRAIN_STEP_S = 0.01
_VERDICT_NAMES = {number: name.removeprefix("VERDICT_").lower() for name, number in common_pb2.Verdict.items()}


@dataclass
class DispatchCounters:
    """What happened since the start."""

    num_scored: int = 0
    num_faults: int = 0
    num_regraded: int = 0
    num_disagreements: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # components by (scorer, verdict)

    def count(self, results: Sequence[reward_pb2.ScoreResult]) -> None:
        """Adds what a call answers."""
        for result in results:
            if result.HasField("fault"):
                self.num_faults += 1
                continue
            self.num_scored += 1
            for component in result.components:
                self.verdicts[component.name, _VERDICT_NAMES[component.verdict]] += 1


class Dispatcher:
    """Scores items through an executor; `close` waits for what is still being graded a second time.

    attempts: tries before an item's fault is final; regrade_share: of correct results graded again in fresh
    workers, in the background; rng: draws them.
    """

    def __init__(
        self, executor: Executor, attempts: int, regrade_share: float, rng: random.Random | None = None
    ) -> None:
        self.counters = DispatchCounters()
        self._executor = executor
        self._attempts = attempts
        self._regrade_share = regrade_share
        self._rng = rng or random.SystemRandom()
        self._regrades: set[asyncio.Task[None]] = set()
        self._num_pending = 0  # items drawn for a second grading that have none yet

    async def score(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float
    ) -> list[reward_pb2.ScoreResult]:
        """One result an item, in order; an item that could not be graded carries a fault.

        Raises the error itself when the executor answered for none of them.
        """
        ends_s = asyncio.get_running_loop().time() + timeout_s
        parts = chunks(items)
        answers = await asyncio.gather(
            *(self._chunk(part, deadline_s, ends_s) for part in parts), return_exceptions=True
        )
        results = _joined(parts, answers)
        self.counters.count(results)
        self._regrade_some(items, results, deadline_s)
        return results

    async def close(self, grace_s: float) -> None:
        """Waits for second gradings, at most grace_s."""
        if self._regrades:
            _, late = await asyncio.wait(self._regrades, timeout=max(DRAIN_STEP_S, grace_s))
            for task in late:
                task.cancel()

    async def _chunk(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, ends_s: float
    ) -> list[reward_pb2.ScoreResult]:
        results, executor = await self._execute(items, deadline_s, ends_s, fresh=False)
        for _ in range(1, self._attempts):
            again = [i for i, result in enumerate(results) if result.fault.retryable]
            if not again or asyncio.get_running_loop().time() >= ends_s:
                break
            try:
                better, executor = await self._execute(
                    [items[i] for i in again], deadline_s, ends_s, fresh=True, avoid=executor
                )
            except CrescendoError as error:
                log.warning("%d items were not graded again: %s", len(again), error.message)
                break
            for index, result in zip(again, better, strict=True):
                results[index] = result
        return results

    async def _execute(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, ends_s: float, *, fresh: bool, avoid: str = ""
    ) -> tuple[list[reward_pb2.ScoreResult], str]:
        remaining_s = max(0.001, ends_s - asyncio.get_running_loop().time())
        graded = await self._executor.execute(items, deadline_s, remaining_s, fresh=fresh, avoid=avoid)
        if len(graded.results) != len(items):
            raise WorkerLostError(f"the executor answered {len(graded.results)} of {len(items)} items.")
        results = [checked(item, result) for item, result in zip(items, graded.results, strict=True)]
        return results, graded.executor

    def _regrade_some(
        self,
        items: Sequence[reward_pb2.ScoreItem],
        results: Sequence[reward_pb2.ScoreResult],
        deadline_s: float,
    ) -> None:
        chosen = [
            (item, result)
            for item, result in zip(items, results, strict=True)
            if is_correct(result) and self._rng.random() < self._regrade_share
        ]
        room = MAX_PENDING_REGRADES - self._num_pending
        if chosen and room > 0:
            self._num_pending += len(chosen[:room])
            self._spawn(self._regrade(chosen[:room], deadline_s))

    async def _regrade(
        self, chosen: Sequence[tuple[reward_pb2.ScoreItem, reward_pb2.ScoreResult]], deadline_s: float
    ) -> None:
        items = [item for item, _ in chosen]
        try:
            ends_s = asyncio.get_running_loop().time() + worst_case_s(len(items), deadline_s, 1)
            second, _ = await self._execute(items, deadline_s, ends_s, fresh=True)
        except CrescendoError as error:
            log.warning("%d items were not graded a second time: %s", len(items), error.message)
            return
        finally:
            self._num_pending -= len(chosen)
        for (item, first), again in zip(chosen, second, strict=True):
            if again.HasField("fault"):
                continue
            self.counters.num_regraded += 1
            if judgement(first) != judgement(again):
                self.counters.num_disagreements += 1
                log.error(
                    "item %s was graded %s, and %s in a fresh worker: a worker may have been tampered with",
                    *(item.item_id, judgement(first), judgement(again)),
                )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._regrades.add(task)
        task.add_done_callback(self._regrades.discard)


def _joined(
    parts: Sequence[Sequence[reward_pb2.ScoreItem]],
    answers: Sequence[list[reward_pb2.ScoreResult] | BaseException],
) -> list[reward_pb2.ScoreResult]:
    """Results of all chunks; the items of a chunk that failed carry its error, unless all failed: then it is raised."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, CrescendoError):
            raise answer
    errors = [answer for answer in answers if isinstance(answer, CrescendoError)]
    if errors and len(errors) == len(answers):
        raise errors[0]
    results: list[reward_pb2.ScoreResult] = []
    for part, answer in zip(parts, answers, strict=True):
        if isinstance(answer, CrescendoError):
            results += [reward_pb2.ScoreResult(item_id=item.item_id, fault=to_detail(answer)) for item in part]
        elif isinstance(answer, list):
            results += answer
    return results


def chunks(items: Sequence[reward_pb2.ScoreItem]) -> list[list[reward_pb2.ScoreItem]]:
    """Splits a request so that no message to the executor is very large; at least one item a chunk."""
    found: list[list[reward_pb2.ScoreItem]] = []
    num_bytes = 0
    for item in items:
        size = len(item.response) + len(item.prompt)
        if not found or len(found[-1]) >= MAX_CHUNK_ITEMS or num_bytes + size > MAX_CHUNK_BYTES:
            found.append([])
            num_bytes = 0
        found[-1].append(item)
        num_bytes += size
    return found


def worst_case_s(num_items: int, deadline_s: float, attempts: int) -> float:
    """Longest useful wait for items, each at its deadline at every attempt, in one worker."""
    return attempts * num_items * deadline_s + MARGIN_S


def is_correct(result: reward_pb2.ScoreResult) -> bool:
    """Whether some component was judged correct."""
    return any(component.verdict == common_pb2.VERDICT_CORRECT for component in result.components)


def judgement(result: reward_pb2.ScoreResult) -> list[tuple[str, float, str]]:
    """What two gradings of one item must agree in."""
    return [
        (component.name, round(component.raw, 9), common_pb2.Verdict.Name(component.verdict))
        for component in result.components
    ]


def checked(item: reward_pb2.ScoreItem, result: reward_pb2.ScoreResult) -> reward_pb2.ScoreResult:
    """The result, or a fault if it cannot be one of this item's chain: names, weights, order and ranges."""
    if result.HasField("fault"):
        return result
    fits = len(result.components) == len(item.chain) and all(
        component.name == spec.name
        and component.weight == spec.weight
        and WORKER_SCORERS[spec.name].low <= component.raw <= WORKER_SCORERS[spec.name].high
        for component, spec in zip(result.components, item.chain, strict=True)
    )
    if fits and result.item_id == item.item_id:
        return result
    error = WorkerLostError(f"the result of item {item.item_id} does not fit its reward chain.")
    log.error("%s", error.message)
    return reward_pb2.ScoreResult(item_id=item.item_id, fault=to_detail(error))
