"""The rollout phase: engines claim and generate by themselves; the controller starts, watches and ends it.

It ends when every engine is drained (all that could be claimed has ended or is over its budget), when enough
groups are complete (`partial.train_ratio`), or when people pause or stop the run; then engines park what is
unfinished. Waits for: drained engines. Unblocks: the switch to training.
"""

import asyncio
import math
import time
from dataclasses import dataclass

from crescendo.buffer import ExperienceBuffer
from crescendo.common import failpoints
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.errors import DeadlineError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.launch import Fleet, Worker
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.proto.v1 import common_pb2, rollout_pb2

POLL_S = 0.02
EXPIRY_CHECK_S = 2.0


@dataclass(frozen=True)
class PhaseFacts:
    """What a rollout phase did, over all engines."""

    num_tokens: int
    num_finished: int
    num_parked: int
    num_repeats: int
    seconds: float
    interrupted: bool


@dataclass
class Rollouts:
    """Drives the engines through one phase an iteration."""

    config: Config
    step: RlStepConfig
    fleet: Fleet
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board
    control: Control
    tokenizer: Tokenizer

    async def phase(self, iteration: int, branch: int, stage: StageConfig, version: int) -> PhaseFacts:
        """Runs the phase; raises DeadlineError when it passes its limit, WorkerLostError with a dead engine."""
        engines = self.fleet.engines
        begun = time.monotonic()
        await self._begin(engines, iteration, branch, stage, version)
        failpoints.reach("rollout.begun")
        try:
            interrupted = await self._watch(engines, iteration, stage, begun)
        finally:
            progress = await self._pause(engines, iteration)
        seconds = time.monotonic() - begun
        return PhaseFacts(
            num_tokens=sum(p.num_tokens for p in progress),
            num_finished=sum(p.num_finished for p in progress),
            num_parked=sum(p.num_parked for p in progress),
            num_repeats=sum(p.num_repeats for p in progress),
            seconds=seconds,
            interrupted=interrupted,
        )

    async def _begin(
        self, engines: list[Worker], iteration: int, branch: int, stage: StageConfig, version: int
    ) -> None:
        rollout, repetition = self.config.rollout, self.step.repetition
        rule = common_pb2.RepetitionRule()
        if repetition.enabled:
            rule = common_pb2.RepetitionRule(
                ngram_tokens=repetition.ngram_tokens, window_tokens=repetition.window_tokens, count=repetition.count
            )
        request = rollout_pb2.BeginRequest(
            fence=self.lease.fence,
            idempotency_key=f"begin-{branch}-{iteration}-{self.lease.fence.counter}",
            iteration=iteration,
            branch=branch,
            stage=stage.name,
            weight_version=version,
            sampling=common_pb2.Sampling(
                temperature=stage.sampling.temperature,
                top_p=stage.sampling.top_p,
                stop_token_ids=self.tokenizer.eos_token_ids,
            ),
            max_response_tokens=stage.max_response_tokens,
            token_budget=stage.token_budget,
            max_spans=self.step.partial.max_spans,
            repetition=rule,
            max_concurrency=rollout.max_concurrency,
            flush_tokens=rollout.flush_tokens,
            flush_seconds=rollout.flush_s,
            lease_seconds=rollout.lease_s,
        )
        timeout_s = self.config.deadlines.call_s
        await asyncio.gather(*(engine.call("Begin", request, timeout_s=timeout_s) for engine in engines))

    async def _watch(self, engines: list[Worker], iteration: int, stage: StageConfig, begun: float) -> bool:
        """Polls until the phase may end; returns whether people interrupted it."""
        enough = math.ceil(self.step.partial.train_ratio * stage.prompts_per_iteration)
        next_expiry = begun + EXPIRY_CHECK_S
        status = rollout_pb2.GetRolloutStatusRequest()
        while True:
            timeout_s = self.config.deadlines.call_s
            answers = await asyncio.gather(
                *(engine.call("GetStatus", status, timeout_s=timeout_s) for engine in engines)
            )
            for engine, answer in zip(engines, answers, strict=True):
                engine.status = answer.worker
            self._show([answer.progress for answer in answers], stage)
            if all(answer.progress.drained for answer in answers):
                return False
            if self.step.partial.train_ratio < 1.0 and await self._complete_groups() >= enough:
                return False
            if self.control.interrupting:
                return True
            now = time.monotonic()
            if now - begun > self.config.deadlines.rollout_s:
                raise DeadlineError(
                    f"the rollout phase of iteration {iteration} passed {self.config.deadlines.rollout_s:.0f} s.",
                    field="deadlines.rollout_s",
                )
            if now > next_expiry:
                next_expiry = now + EXPIRY_CHECK_S
                for lost in await self.buffer.expire_leases(self.lease.fence):
                    self.board.event("trajectory.lease_expired", f"{lost} goes to another engine.", severity="warning")
            await asyncio.sleep(POLL_S)

    async def _complete_groups(self) -> int:
        counts = await self.buffer.counts()
        return counts.get("groups.complete", 0)

    def _show(self, progress: list[rollout_pb2.RolloutProgress], stage: StageConfig) -> None:
        ended = sum(p.num_finished + p.num_parked for p in progress)
        expected = stage.prompts_per_iteration * stage.samples_per_prompt
        self.board.status.phase_progress = min(1.0, ended / expected)
        self.board.status.tokens_per_second = sum(p.tokens_per_second for p in progress)

    async def _pause(self, engines: list[Worker], iteration: int) -> list[rollout_pb2.RolloutProgress]:
        pause_s = self.config.deadlines.pause_s
        request = rollout_pb2.PauseRequest(
            fence=self.lease.fence, idempotency_key=f"pause-{iteration}", deadline_seconds=pause_s
        )
        alive = [engine for engine in engines if engine.state == "ready"]
        answers = await asyncio.gather(*(engine.call("Pause", request, timeout_s=pause_s + 5) for engine in alive))
        return [answer.progress for answer in answers]
