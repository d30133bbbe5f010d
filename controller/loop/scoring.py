"""The scoring loop: finished trajectories to the reward service, components back into the buffer.

It holds no device and runs beside rollout and training. Waits for: finished trajectories (a wake-up key).
Unblocks: complete groups. A fault of the service is retried, then the trajectory is excluded with its reason
and counted; it is never a score of 0.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from crescendo.buffer import Claim, ExperienceBuffer, Scored
from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config, ScorerConfig
from crescendo.common.config.scorers import catalogue, completed
from crescendo.common.errors import CrescendoError, DeadlineError, StaleFenceError
from crescendo.common.tokenizer import Tokenizer
from crescendo.common.types import TrajectoryId
from crescendo.controller.launch import Fleet
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.lease import DeviceLease
from crescendo.proto.v1 import common_pb2, reward_pb2

log = logging.getLogger(__name__)

BATCH_ITEMS = 256
WAIT_S = 0.5
SETTLE_POLL_S = 0.01
FAULT_BACKOFF_S = 0.2
MOVE_S = 2.0  # from a fence in the buffer to the same fence in the lease


def chain_of(
    config: Config, domain: str, stage: StageConfig | None, iteration: int | None = None
) -> list[reward_pb2.ScorerSpec]:
    """The reward chain of a prompt's domain with the stage's weights."""
    return scorer_specs(config.rewards.chains[domain], stage, iteration)


def scorer_specs(
    links: Sequence[ScorerConfig], stage: StageConfig | None, iteration: int | None = None
) -> list[reward_pb2.ScorerSpec]:
    """Links of the run file on the wire.

    A stage's weight goes before the link's own, and before its from_iteration a link has weight 0 (iteration None: no
    warm-up). The stage also gives the options that follow it, such as a limit on tokens.
    """
    weights = stage.reward_weights if stage else {}

    def weight(link: ScorerConfig) -> float:
        is_warming_up = iteration is not None and iteration < link.from_iteration
        return 0.0 if is_warming_up else weights.get(link.scorer, link.weight)

    return [
        reward_pb2.ScorerSpec(
            name=link.scorer, weight=weight(link), options=completed(link.scorer, link.options, stage)
        )
        for link in links
    ]


def reads_tokens(chain: Sequence[reward_pb2.ScorerSpec]) -> bool:
    """Whether a scorer of the chain wants token ids besides the text."""
    return any(catalogue()[spec.name].reads_tokens for spec in chain if spec.name in catalogue())


@dataclass
class ScoringLoop:
    """`start` it once; `settle` waits until everything finished so far is scored."""

    config: Config
    fleet: Fleet
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board
    tokenizer: Tokenizer
    stage: StageConfig | None = None
    iteration: int | None = None
    num_excluded: int = 0
    _in_flight: int = 0
    _stopping: bool = False
    _away: bool = False
    _task: asyncio.Task[None] | None = field(default=None)

    def start(self) -> None:
        """Begins to score in the background."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="scoring")

    async def stop(self) -> None:
        """Ends the loop; what it had taken is handed out again later."""
        self._stopping = True  # a client library may swallow a cancellation
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def settle(self, deadline_s: float) -> None:
        """Waits until no finished trajectory is unscored; raises DeadlineError, or what ended the loop."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        while self._in_flight or (await self.buffer.counts()).get("trajectories.finished", 0):
            if self._task is not None and self._task.done():
                self._task.result()
            if loop.time() > deadline:
                raise DeadlineError(
                    f"scores were still missing after {deadline_s:.0f} s.",
                    field="deadlines.scoring_s",
                    fix="See logs/reward-0.log and logs/executor-0.log.",
                )
            await asyncio.sleep(SETTLE_POLL_S)

    async def _run(self) -> None:
        while not self._stopping:
            fence = self.lease.fence
            try:
                claims = await self.buffer.claim_finished(fence, limit=BATCH_ITEMS, wait_s=WAIT_S)
                if claims:
                    await self._score(claims)
            except StaleFenceError:
                if not await self._lease_moved(fence):
                    raise
            except CrescendoError as error:
                if not error.retryable:
                    raise
                self.board.event("scoring.retried", str(error), severity="warning")
                await asyncio.sleep(FAULT_BACKOFF_S)

    async def _lease_moved(self, used: common_pb2.Fence) -> bool:
        """Whether our own lease moved on since a fence was used; else a newer controller took over."""
        for _ in range(round(MOVE_S / SETTLE_POLL_S)):
            if self.lease.fence != used:
                return True
            await asyncio.sleep(SETTLE_POLL_S)
        return False

    async def _score(self, claims: Sequence[Claim]) -> None:
        """Scores what was claimed. Time in which the service is away is no attempt: its items are not at fault."""
        self._in_flight += len(claims)
        waiting = {claim.trajectory.trajectory_id: claim for claim in claims}
        reasons: dict[str, str] = {}
        attempt = 0
        try:
            while waiting and attempt < self.config.reward_service.attempts and not self._stopping:
                results = await self._results(list(waiting.values()))
                good = {result.item_id: result for result in results if not result.HasField("fault")}
                reasons |= {result.item_id: result.fault.message for result in results if result.HasField("fault")}
                await self._store([Scored(key, tuple(good[key].components)) for key in waiting if key in good])
                waiting = {key: claim for key, claim in waiting.items() if key not in good}
                if waiting:
                    attempt += await self._is_well()
                    await asyncio.sleep(FAULT_BACKOFF_S * max(1, attempt))
            if not self._stopping:
                await self._exclude(reasons, waiting)
        finally:
            self._in_flight -= len(claims)

    async def _results(self, claims: Sequence[Claim]) -> list[reward_pb2.ScoreResult]:
        """The service's answer; none while it is away, which Supervisor sees to."""
        try:
            results = await self._request(claims)
        except CrescendoError as error:
            if not error.retryable:
                raise
            if not self._away:
                self.board.event("scoring.retried", str(error), severity="warning")
            self._away = True
            return []
        self._away = False
        return results

    async def _is_well(self) -> bool:
        """Whether the service and what it stands on answer, so that a fault is the item's."""
        workers = [one for one in self.fleet.workers.values() if one.role in ("reward", "executor")]
        try:
            await asyncio.gather(*(worker.refresh(self.config.deadlines.call_s) for worker in workers))
        except CrescendoError as error:
            log.warning("the reward service is away: %s", error)
            return False
        return True

    async def _store(self, scored: Sequence[Scored]) -> None:
        while scored:
            fence = self.lease.fence
            try:
                await self.buffer.score(fence, scored)
            except StaleFenceError:
                if not await self._lease_moved(fence):
                    raise
            else:
                return

    async def _request(self, claims: Sequence[Claim]) -> list[reward_pb2.ScoreResult]:
        item_s = self.config.reward_service.item_deadline_s
        request = reward_pb2.ScoreRequest(items=[self._item(claim) for claim in claims], deadline_seconds=item_s)
        timeout_s = self.config.deadlines.scoring_s
        answer = await self.fleet.reward.call("Score", request, timeout_s=timeout_s, attempts=3)
        return list(answer.results)

    def _item(self, claim: Claim) -> reward_pb2.ScoreItem:
        trajectory, prompt = claim.trajectory, claim.prompt
        item = score_item(
            trajectory.trajectory_id,
            self.tokenizer.decode(trajectory.token_ids.tolist()),
            prompt,
            chain_of(self.config, prompt.domain, self.stage, self.iteration),
            trajectory.finish_reason,
            trajectory.num_tokens,
        )
        if reads_tokens(item.chain):
            item.token_ids = trajectory.token_ids.astype("<i4", copy=False).tobytes()
        return item

    async def _exclude(self, reasons: dict[str, str], waiting: dict[TrajectoryId, Claim]) -> None:
        for key, claim in waiting.items():
            reason = f"reward: {reasons.get(key, 'no answer')}"
            await self.buffer.drop_trajectory(self.lease.fence, claim.trajectory.trajectory_id, reason)
            self.num_excluded += 1
            self.board.event("trajectory.excluded", f"{key}: {reason}", severity="warning")


def score_item(
    item_id: str,
    response: str,
    prompt: common_pb2.Prompt,
    chain: list[reward_pb2.ScorerSpec],
    finish_reason: common_pb2.FinishReason.ValueType,
    num_tokens: int,
) -> reward_pb2.ScoreItem:
    """What the reward service is told about one response."""
    text = "".join(part.text for part in prompt.parts)
    return reward_pb2.ScoreItem(
        item_id=item_id,
        response=response.encode("utf-8", errors="replace"),
        prompt=text.encode(),
        gold_answers=prompt.gold_answers,
        metadata=dict(prompt.metadata),
        chain=chain,
        finish_reason=finish_reason,
        num_tokens=num_tokens,
    )
