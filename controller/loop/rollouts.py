"""The rollout phase: engines claim and generate by themselves; the controller starts, watches and ends it.

It ends when every engine is drained (all that could be claimed has ended or is over its budget), when enough
groups are complete (`partial.train_ratio`), or when people pause or stop the run; then engines park what is
unfinished. Waits for: drained engines. Unblocks: the switch to training.

An engine that is lost meanwhile gives back what it held; the others go on with it from its last flush. Its
replacement joins the phase once it has attested the weights (`Rejoin`). In deterministic mode a lost engine ends
the phase, because what the replacement would do depends on the moment. People may add and remove engines while the
run goes on (Control.num_engines): a new one joins as a replacement does; one that leaves parks what it has, so that
the others go on with it, and ends.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from crescendo.buffer import ExperienceBuffer
from crescendo.common import failpoints
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.errors import CrescendoError, DeadlineError, WorkerLostError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.launch import Fleet, Worker, engine_name
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.waits import Patience, cancel
from crescendo.proto.v1 import common_pb2, rollout_pb2

POLL_S = 0.02
EXPIRY_CHECK_S = 2.0
SETTLE_S = 1.0  # after leases were given back, until idle engines must have claimed them
RETRY_S = 0.2
PAUSE_ANSWER_S = 5.0  # beyond the pause's own deadline

Rejoin = Callable[[str], Awaitable[Worker]]
"""Starts the engine of this name, in place of a lost one if there was, and brings it to the phase's weights."""


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
class _Phase:
    """One phase under way.

    serving: engines that have begun it, by the name that they hold leases under; progress: the last of each, lost
    ones included; joining: replacements on their way, by worker.
    """

    request: rollout_pb2.BeginRequest
    begun: float
    serving: dict[str, Worker] = field(default_factory=dict)
    progress: dict[str, rollout_pb2.RolloutProgress] = field(default_factory=dict)
    joining: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    standing: contextlib.ExitStack | None = None
    stood_s: float = 0.0
    unsettled_until: float = 0.0
    ended: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def drained(self) -> bool:
        """Whether every engine has nothing left to do, and nobody's work was given back just now."""
        known = [self.progress.get(holder) for holder in self.serving]
        settled = time.monotonic() > self.unsettled_until
        return settled and bool(known) and all(one is not None and one.drained for one in known)


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
    patience: Patience
    rejoin: Rejoin
    _joining: set["asyncio.Task[None]"] = field(default_factory=set)

    async def stop(self) -> None:
        """Ends replacements of engines under way; whoever goes on starts them again."""
        await cancel(list(self._joining))

    async def phase(self, iteration: int, branch: int, stage: StageConfig, version: int) -> PhaseFacts:
        """Runs the phase; raises DeadlineError when it passes its limit, WorkerLostError when no engine is left."""
        phase = _Phase(self._request(iteration, branch, stage, version), time.monotonic())
        try:
            await asyncio.gather(*(self._begin(phase, engine) for engine in self.fleet.engines))
            failpoints.reach("rollout.begun")
            interrupted = await self._watch(phase, stage)
        finally:
            async with phase.lock:
                phase.ended = True
            await asyncio.gather(*(self._pause(phase, *one) for one in phase.serving.items()))
            self._stand(phase, "")
        progress = phase.progress.values()
        return PhaseFacts(
            num_tokens=sum(p.num_tokens for p in progress),
            num_finished=sum(p.num_finished for p in progress),
            num_parked=sum(p.num_parked for p in progress),
            num_repeats=sum(p.num_repeats for p in progress),
            seconds=time.monotonic() - phase.begun,
            interrupted=interrupted,
        )

    def _request(self, iteration: int, branch: int, stage: StageConfig, version: int) -> rollout_pb2.BeginRequest:
        rollout, repetition = self.config.rollout, self.step.repetition
        rule = common_pb2.RepetitionRule()
        if repetition.enabled:
            rule = common_pb2.RepetitionRule(
                ngram_tokens=repetition.ngram_tokens, window_tokens=repetition.window_tokens, count=repetition.count
            )
        run = self.config.run
        return rollout_pb2.BeginRequest(
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
                seed=run.seed if run.deterministic else None,
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

    async def _begin(self, phase: _Phase, engine: Worker) -> None:
        """Lets an engine begin; one that is lost before it answers is treated as one that is lost later."""
        phase.serving[engine.spec.holder] = engine
        while engine.is_ready:
            try:
                await engine.call("Begin", phase.request, timeout_s=self.config.deadlines.call_s)
            except CrescendoError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return

    # While it runs ------------------------------------------------------------------------------------

    async def _watch(self, phase: _Phase, stage: StageConfig) -> bool:
        """Polls until the phase may end; returns whether people interrupted it."""
        enough = math.ceil(self.step.partial.train_ratio * stage.prompts_per_iteration)
        next_expiry = phase.begun + EXPIRY_CHECK_S
        while True:
            polled = time.monotonic()
            await self._scale(phase)
            await self._poll(phase)
            self._show(phase, stage)
            if phase.drained:
                return False
            if self.step.partial.train_ratio < 1.0 and await self._complete_groups() >= enough:
                return False
            if self.control.interrupting:
                return True
            self._check_deadline(phase)
            if phase.standing is None and time.monotonic() > next_expiry:
                next_expiry = time.monotonic() + EXPIRY_CHECK_S
                for lost in await self.buffer.expire_leases(self.lease.fence):
                    self.board.event("trajectory.lease_expired", f"{lost} goes to another engine.", severity="warning")
            await asyncio.sleep(POLL_S)
            if phase.standing is not None:
                phase.stood_s += time.monotonic() - polled

    def _check_deadline(self, phase: _Phase) -> None:
        limit_s = self.config.deadlines.rollout_s
        if time.monotonic() - phase.begun - phase.stood_s > limit_s:
            raise DeadlineError(
                f"the rollout phase of iteration {phase.request.iteration} passed {limit_s:.0f} s.",
                field="deadlines.rollout_s",
            )

    async def _poll(self, phase: _Phase) -> None:
        """Asks every engine how far it is; begins to replace those that are lost."""
        engines = dict(phase.serving)
        answers = await asyncio.gather(*(self._ask(engine) for engine in engines.values()))
        for (holder, engine), answer in zip(engines.items(), answers, strict=True):
            if answer is not None:
                engine.status, phase.progress[holder] = answer.worker, answer.progress
            elif not engine.is_ready:
                await self._give_back(phase, holder, engine)
        self._stand(phase, troubles([engine.status for engine in phase.serving.values()]))
        phase.joining = {name: task for name, task in phase.joining.items() if not task.done()}
        # With the trainer lost too (they may have lived in the same Ray), replacements come with the next attempt.
        if not phase.serving and not (phase.joining and self.fleet.trainer.is_ready):
            raise WorkerLostError("no engine is left to roll out.", fix="See the engines' logs in the run folder.")

    async def _ask(self, engine: Worker) -> rollout_pb2.GetRolloutStatusResponse | None:
        """Its status; None when it does not answer, which Supervisor judges."""
        try:
            request, timeout_s = rollout_pb2.GetRolloutStatusRequest(), self.config.deadlines.call_s
            answer: rollout_pb2.GetRolloutStatusResponse = await engine.call("GetStatus", request, timeout_s=timeout_s)
        except CrescendoError as error:
            if not error.retryable:
                raise
            return None
        return answer

    def _stand(self, phase: _Phase, reason: str) -> None:
        """The run stands still while an engine cannot bring its tokens to the buffer; it keeps them meanwhile."""
        if reason and phase.standing is None:
            phase.standing = contextlib.ExitStack()
            phase.standing.enter_context(self.patience.standing(reason))
        elif not reason and phase.standing is not None:
            phase.standing.close()
            phase.standing = None

    async def _give_back(self, phase: _Phase, holder: str, engine: Worker) -> None:
        """What a lost engine held goes on elsewhere from its last flush; its replacement is on its way."""
        del phase.serving[holder]
        if self.config.run.deterministic:
            raise WorkerLostError(f"{engine.worker_id} is lost: {engine.why_lost}.")
        ids = await self.buffer.release_worker(self.lease.fence, holder)
        self.board.event(
            "trajectory.given_back", f"{len(ids)} trajectories of {engine.worker_id} go on from their last flush",
            trajectories=len(ids),
        )  # fmt: skip
        phase.unsettled_until = time.monotonic() + SETTLE_S
        if not phase.ended:
            self._call(phase, engine.worker_id)

    async def _scale(self, phase: _Phase) -> None:
        """Calls engines that people want besides, and lets go of those that they do not want any more."""
        number, out = self.control.num_engines, self.control.quarantine.engines
        if number is None and not out:
            return
        here = {engine.worker_id for engine in phase.serving.values()}
        wanted = ({engine_name(index) for index in range(number)} if number is not None else here) - out
        for name in sorted(wanted - self.fleet.workers.keys() - phase.joining.keys()):
            self._call(phase, name)
        for holder, engine in [one for one in phase.serving.items() if one[1].worker_id not in wanted]:
            await self._pause(phase, holder, engine)
            del phase.serving[holder]
            phase.unsettled_until = time.monotonic() + SETTLE_S
            await self.fleet.end_engine(engine)
            self.board.event("engine.left", f"{engine.worker_id} parked its work and left", worker=engine.worker_id)

    def _call(self, phase: _Phase, name: str) -> None:
        task = phase.joining[name] = asyncio.create_task(self._join(phase, name))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, phase: _Phase, name: str) -> None:
        try:
            engine = await self.rejoin(name)
            async with phase.lock:
                if not phase.ended:
                    await self._begin(phase, engine)
                    self.board.event("engine.joined", f"{name} joins iteration {phase.request.iteration}", worker=name)
        except CrescendoError as error:
            self.board.event("engine.stays_away", f"{name}: {error}", severity="error")

    async def _complete_groups(self) -> int:
        counts = await self.buffer.counts()
        return counts.get("groups.complete", 0)

    def _show(self, phase: _Phase, stage: StageConfig) -> None:
        progress = phase.progress.values()
        ended = sum(p.num_finished + p.num_parked for p in progress)
        expected = stage.prompts_per_iteration * stage.samples_per_prompt
        self.board.status.phase_progress = min(1.0, ended / expected)
        rates = [phase.progress[holder].tokens_per_second for holder in phase.serving if holder in phase.progress]
        self.board.status.tokens_per_second = sum(rates)

    # At its end ---------------------------------------------------------------------------------------

    async def _pause(self, phase: _Phase, holder: str, engine: Worker) -> None:
        """Parks what an engine has not finished. It keeps its tokens until the buffer takes them, which may last."""
        pause_s = self.config.deadlines.pause_s
        request = rollout_pb2.PauseRequest(
            fence=self.lease.fence, idempotency_key=f"pause-{phase.request.iteration}", deadline_seconds=pause_s
        )
        deadline = time.monotonic() + pause_s + self.config.deadlines.buffer_s
        while engine.is_ready:
            try:
                answer = await engine.call("Pause", request, timeout_s=pause_s + PAUSE_ANSWER_S)
            except CrescendoError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                self.board.event("engine.pausing", str(error), severity="warning")
                await asyncio.sleep(RETRY_S)
            else:
                phase.progress[holder] = answer.progress
                return
        await self.buffer.release_worker(self.lease.fence, holder)


def troubles(engines: Iterable[common_pb2.WorkerStatus]) -> str:
    """Why the run stands still, by what its engines say; empty when it does not."""
    for state, reason in (("buffer_refuses", "buffer refuses writes"), ("buffer_unreachable", "buffer is unreachable")):
        names = [engine.worker_id for engine in engines if engine.state == state]
        if names:
            return f"{reason} ({', '.join(names)} cannot flush)"
    return ""
