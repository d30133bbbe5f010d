"""A run from its folder to its end: start everything, walk the steps, finish; whatever is lost, do it again.

    attempt:  new epoch -> bring up what is not running -> restore the newest commit -> steps -> finish

`execute` is called once by the controller process. A retryable failure anywhere (a lost worker, a passed deadline)
ends the attempt; the next one replaces what is lost, fences out what is not, and goes on from the newest commit
and the redo log. The first attempt is no other than the later ones: nothing runs yet, so everything is started.
A stage with another layout ends an attempt too, and is no failure (relayout.py).
Losses that need not end an attempt are repaired in it: the reward service and the embedded Valkey by Supervisor,
engines by Rollouts and Parts. Everything else ends the run with its error.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from crescendo.buffer import ExperienceBuffer, connect
from crescendo.common import failpoints
from crescendo.common.config.rl import RlStepConfig
from crescendo.common.config.schema import Config, StepConfig
from crescendo.common.errors import CrescendoError
from crescendo.common.runfolder import RunFolder
from crescendo.common.weights import stale_shm_files
from crescendo.controller.curriculum import Curriculum
from crescendo.controller.dataset import Dataset
from crescendo.controller.launch import Fleet, Supervisor, engine_name
from crescendo.controller.loop import recovery
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.commits import Commits
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.parts import Parts
from crescendo.controller.loop.relayout import Relayout
from crescendo.controller.loop.rollouts import Rollouts
from crescendo.controller.loop.run import Reinforcement
from crescendo.controller.loop.scoring import ScoringLoop
from crescendo.controller.loop.sft import SupervisedStep
from crescendo.controller.loop.state import RunState
from crescendo.controller.loop.sync import WeightSync
from crescendo.controller.loop.validation import Validation
from crescendo.controller.loop.waits import Patience, Pulse, cancel, patient
from crescendo.controller.ownership import FolderLock
from crescendo.controller.policy import prepare_policy
from crescendo.controller.stages import StageScheduler
from crescendo.controller.store import bring_export, open_stored
from crescendo.proto.v1 import archive_pb2, trainer_pb2

ALREADY_RUNNING_S = 0.05  # what is ensured quicker had not to be started


@dataclass
class Session:
    """One controller incarnation's view of a run."""

    config: Config
    folder: RunFolder
    board: Board
    control: Control
    fleet: Fleet
    lock: FolderLock
    state: RunState = field(default_factory=RunState)
    parts: Parts | None = None
    sealed: bool = False  # commits of earlier controllers can no longer appear
    _engines: asyncio.Task[None] | None = None
    _archiving: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.fleet, self.config, self._tell)
        if self.config.run.deterministic or self.fleet.uses_gpu:
            self.control.fixed_engines = "with run.deterministic, or on GPUs, engines have fixed places"
        self.patience = Patience(
            self.board, self.control, limit_s=self.config.deadlines.buffer_s, gave_up=lambda: self.supervisor.gave_up
        )

    def _tell(self, kind: str, message: str, *, severity: str = "info", **numbers: Any) -> None:
        self.board.event(kind, message, severity=severity, facts=numbers)

    async def execute(self) -> None:
        """Runs to the end or to a stop; raises the CrescendoError that ended it. Leaves no process behind."""
        watching = [asyncio.create_task(Pulse(self.board).run(), name="pulse")]
        try:
            with self.board.phase("start"):
                await self._open()
            await self._survive()
        finally:
            await cancel([*watching, self._engines, self._archiving])
            await self.supervisor.stop()
            await self.fleet.stop()
            if self.lock.held:
                for left in stale_shm_files(self.folder.run_id()):
                    left.unlink(missing_ok=True)

    async def _survive(self) -> None:
        """Attempts until one ends well, an error is no loss, or attempts are used up without progress."""
        attempts = self.supervisor.attempts("run")
        furthest, phase = self._reached(), "start"
        while True:
            try:
                await self._unless_given_up(self._attempt(phase))
            except Relayout:
                if self.control.stop_requested:  # the commit that was due stands
                    return
                phase = "relayout"
            except CrescendoError as error:
                phase = "recover"
                if self._reached() > furthest:
                    furthest = self._reached()
                    attempts.forget()
                if not error.retryable or self.control.stop_requested or self.supervisor.gave_up:
                    raise self.supervisor.gave_up or error from error
                if attempts.exhausted:
                    message = f"given up after {attempts.count} attempts without progress: {error}"
                    self.board.event("run.given_up", message, severity="error")
                    raise
                wait_s = attempts.next_wait_s()
                self.board.event(
                    "run.recovering", f"attempt {attempts.count} of {attempts.limit}: {error}", severity="warning"
                )
                await asyncio.sleep(wait_s)
            else:
                return

    async def _unless_given_up(self, attempt: Coroutine[Any, Any, None]) -> None:
        """Awaits the attempt; ends it when something that it cannot do without is given up."""
        tasks = [asyncio.create_task(attempt), asyncio.create_task(self.supervisor.given_up.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
            elif self.supervisor.gave_up is not None:
                raise self.supervisor.gave_up
        finally:
            await cancel(tasks)

    def _reached(self) -> tuple[int, int, int, int]:
        """How far the run has got; grows with every iteration, commit and step."""
        state = self.state
        return state.step_index, state.sft_steps, state.branch, state.iteration

    async def _attempt(self, phase: str) -> None:
        with self.board.phase(phase, self.state.iteration):
            await recovery.bring_back(self)
            self.data = await self._loading
            await recovery.restore_trainer(self)
        for index, step in enumerate(self.config.steps):
            if index < self.state.step_index or self.control.stop_requested:
                continue
            self.state.step_index = index
            self.board.status.step = step.kind
            await (self._supervise(step) if step.kind == "sft" else self._reinforce(step.rl))
        await self._end()

    # Start --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Policy, buffer and data: what outlives attempts."""
        await asyncio.to_thread(prepare_policy, self.config, self.folder)
        stored = await asyncio.to_thread(open_stored, self.config, self.folder)
        url = await self.fleet.start_buffer()
        budget_bytes = self.config.buffer.max_memory_mib * 2**20
        connected = await connect(url, self.folder.run_id(), budget_bytes=budget_bytes)
        self.buffer: ExperienceBuffer = patient(connected, self.patience)
        self.supervisor.start()
        self._apart = self.config.placement.name == "disaggregated"
        self.lease = DeviceLease(self.buffer, self.board, on_gpu=self.fleet.uses_gpu, apart=self._apart)
        self.commits = Commits(self.config, self.folder, self.buffer, self.lease, self.board, self.patience, stored)
        if stored is not None:
            known = await self.buffer.committed() is not None
            await asyncio.to_thread(stored.restore, buffer_knows=known)
        self._loading = asyncio.create_task(asyncio.to_thread(Dataset.load, self.config, self.folder))

    async def bring_up_services(self) -> None:
        """Starts or replaces what is not ready; engines go on starting in the background."""
        scoring = asyncio.create_task(self._ensure("reward", self.fleet.ensure_reward))
        try:
            await self._ensure("ray", self.fleet.ensure_ray)
            await cancel([self._engines])
            await self.fleet.reserve()
            shared = self.fleet.uses_gpu and not self._apart
            if shared:
                await self._clear_devices()
            self._engines = asyncio.create_task(self._ensure("engines", self._ensure_engines))
            if shared:
                await self._engines
                await self.lease.release_engines(self.fleet.engines)
            await self._ensure("trainer", self.fleet.ensure_trainer)
        finally:
            await scoring

    async def _clear_devices(self) -> None:
        """A GPU engine sizes its cache by what is free when it starts: a trainer that is there moves out first."""
        if all(worker.is_ready for worker in self.fleet.gang) and self.fleet.gang:
            await self.lease.release_trainer(self.fleet.trainer)

    async def _ensure(self, name: str, start: Callable[[], Awaitable[object]]) -> None:
        """Starts what is not ready. The run's first start fails at once; a replacement is tried again."""
        begun = time.monotonic()
        replaced = f"start_{name}" in self.board.seconds
        try:
            await start()
        except CrescendoError:
            if not replaced:
                raise
            await self.supervisor.insist(name, name, start)
        seconds = time.monotonic() - begun
        self.board.seconds.setdefault(f"start_{name}", self.board.elapsed_s)
        if seconds > ALREADY_RUNNING_S:
            kind = "worker.replaced" if replaced else "service.ready"
            self.board.event(kind, f"{name} ready after {seconds:.1f} s", worker=name, seconds=seconds)

    async def _ensure_engines(self) -> None:
        indices, quarantine = range(self.fleet.layout.num_engines), self.control.quarantine
        wanted = [index for index in indices if engine_name(index) not in quarantine.engines]
        if not wanted:
            quarantine.clear()
            self.board.event("engine.quarantine_ended", "this layout has no other engines", severity="warning")
        await asyncio.gather(*(self.fleet.ensure_engine(index) for index in wanted or indices))

    # Steps --------------------------------------------------------------------------------------------

    async def _supervise(self, step: StepConfig) -> None:
        sft = step.sft
        parent = self.state.weight_version
        version = await self.buffer.next_version(self.lease.fence, parent=parent, branch=0, iteration=0)
        examples = self.data.demonstrations(sft, self.state.sft_steps)
        supervised = SupervisedStep(self.config, sft, self.fleet, self.lease, self.board, self.control, self.state)

        async def commit() -> None:
            self.state.weight_version = version
            await self.commits.commit(self.fleet.trainer, self.state)

        await supervised.run(examples, version, commit)
        self.state.weight_version = version
        if not self.control.stop_requested:
            self.state.step_index += 1
        await self.commits.commit(self.fleet.trainer, self.state)

    async def _reinforce(self, step: RlStepConfig) -> None:
        with self.board.phase("start"):
            if self._engines is not None:
                await self._engines
        if self._archiving is None:
            self._archiving = asyncio.create_task(self.supervisor.start_archiver())
        loop = self.rebuild_loop(step)
        try:
            await recovery.replay(loop)
            await loop.forget_unrecorded()
            await self._enter(loop)
            await loop.run()
            await self.commits.settle()
        finally:
            await self.commits.abandon()
            await loop.parts.scoring.stop()
            await loop.parts.rollouts.stop()
        if self.control.stop_requested and self.control.commit_on_stop and not loop.stages.finished:
            await loop.commit()

    async def _enter(self, loop: Reinforcement) -> None:
        """Brings weights to the engines and measures the starting point, once."""
        parts = loop.parts
        with self.board.phase("publish", self.state.iteration):
            await parts.switch_to_rollout()
        parts.show_stages(loop.stages)
        # What finished before a restart is scored at once, by the weights of the stage that it returns to.
        parts.scoring.stage, parts.scoring.iteration = loop.stages.stage, self.state.iteration + 1
        parts.scoring.start()
        if self.state.accuracy_sft is None:
            with self.board.phase("validate", 0):
                facts = await parts.validate(parts.step.stages[-1])
            self.state.accuracy_sft = facts.accuracy
            self.board.event(
                "validation.start", f"accuracy before RL: {facts.accuracy:.3f}",
                accuracy=facts.accuracy, length=facts.length,
            )  # fmt: skip
            self.board.metrics(
                "start", {"iteration": 0.0, "validation_accuracy": facts.accuracy, "length": facts.length}
            )

    def _make_parts(self, step: RlStepConfig) -> Parts:
        shared = (self.fleet, self.buffer, self.lease, self.board)
        sync = WeightSync(self.config, self.buffer, self.lease, self.board)
        sync.canaries = [list(p.token_ids) for p in self.data.validation.prompts[: self.config.rollout.num_canaries]]
        parts = Parts(
            config=self.config, step=step, folder=self.folder, fleet=self.fleet, supervisor=self.supervisor,
            buffer=self.buffer, lease=self.lease, board=self.board, control=self.control, state=self.state, sync=sync,
            scoring=ScoringLoop(self.config, *shared, self.data.tokenizer),
            validation=Validation(
                self.config, step, self.fleet, self.data.tokenizer,
                self.data.validation.prompts[: step.validation.num_prompts],
            ),
            commits=self.commits, tokenizer=self.data.tokenizer, prompts=self.data.train.prompts,
            prompt_index={p.prompt_id: index for index, p in enumerate(self.data.train.prompts)},
        )  # fmt: skip
        parts.rollouts = Rollouts(
            self.config, step, *shared, self.control, self.data.tokenizer, self.patience, parts.rejoin
        )
        return parts

    def rebuild_loop(self, step: RlStepConfig) -> Reinforcement:
        """Collaborators and loop of an RL step, from the state as it stands."""
        self.parts = parts = self._make_parts(step)
        difficulties = self.data.train.difficulties
        curriculum_config, stored = parts.step.curriculum, self.state
        stages = (
            StageScheduler.from_dict(parts.step.stages, stored.stages)
            if stored.stages
            else StageScheduler(parts.step.stages, first_iteration=stored.iteration + 1)
        )
        curriculum = (
            Curriculum.from_dict(curriculum_config, difficulties, stored.curriculum)
            if stored.curriculum
            else Curriculum(curriculum_config, difficulties)
        )
        return Reinforcement(parts, stages, curriculum)

    # End ----------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        if self.control.stop_requested or self.parts is None:
            return
        with self.board.phase("validate", self.state.iteration):
            final = await self.parts.validate(self.parts.step.stages[-1])
        self.state.accuracy_final = final.accuracy
        self.board.metrics(
            "end",
            {"iteration": float(self.state.iteration), "validation_accuracy": final.accuracy, "length": final.length},
        )
        self.state.step_index = len(self.config.steps)
        await self.parts.switch_to_training()
        await self.lease.confirm()
        with self.board.phase("export"):
            request = trainer_pb2.ExportModelRequest(
                fence=self.lease.fence, path=str(self.folder.export.resolve()), dtype=self.config.model.dtype
            )
            limit_s = self.config.deadlines.checkpoint_s
            written = await self.fleet.trainer.call("ExportModel", request, timeout_s=limit_s)
            if self.commits.stored is not None:
                files = [(file.path, file.num_bytes, file.digest) for file in written.files]
                await asyncio.to_thread(bring_export, self.commits.stored.store, self.folder, files)
        failpoints.reach("finish.exported")
        await self.parts.commit()
        failpoints.reach("finish.committed")
        with self.board.phase("archive"):
            await self._complete_archive()

    async def _complete_archive(self) -> None:
        """Waits until the archive holds the whole run; what can't be archived stays in the buffer."""
        try:
            archiver = await self.fleet.ensure_archiver()
            if archiver is not None:
                limit_s = self.config.archive.final_s
                await archiver.call("Flush", archive_pb2.FlushArchiveRequest(), timeout_s=limit_s)
        except CrescendoError as error:
            self.board.event("archive.incomplete", f"the rest stays in the buffer: {error}", severity="warning")
