"""A run from its folder to its end: start everything, walk the steps, recover, finish.

    prepare policy and data -> buffer -> services -> restore (if there is a commit) -> steps -> finish

`execute` is called once by the controller process. A retryable failure (a lost worker, a passed deadline) leads
to `recover`: lost processes are replaced, a new epoch fences the old ones out, and the state is restored from the
newest commit and the redo log. Everything else ends the run with its error.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from crescendo.buffer import ExperienceBuffer, connect
from crescendo.common import failpoints
from crescendo.common.config.rl import RlStepConfig
from crescendo.common.config.schema import Config, StepConfig
from crescendo.common.errors import CrescendoError
from crescendo.common.runfolder import RunFolder
from crescendo.common.weights import stale_shm_files
from crescendo.controller.curriculum import Curriculum
from crescendo.controller.dataset import Dataset
from crescendo.controller.launch import Fleet
from crescendo.controller.loop import recovery
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.commits import Commits
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.parts import Parts
from crescendo.controller.loop.rollouts import Rollouts
from crescendo.controller.loop.run import Reinforcement
from crescendo.controller.loop.scoring import ScoringLoop
from crescendo.controller.loop.sft import SupervisedStep
from crescendo.controller.loop.state import RunState
from crescendo.controller.loop.sync import WeightSync
from crescendo.controller.loop.validation import Validation
from crescendo.controller.policy import prepare_policy
from crescendo.controller.stages import StageScheduler
from crescendo.proto.v1 import trainer_pb2

log = logging.getLogger(__name__)

MAX_RECOVERIES = 5
RECOVERY_BACKOFF_S = 1.0


@dataclass
class Session:
    """One controller incarnation's view of a run."""

    config: Config
    folder: RunFolder
    board: Board
    control: Control
    fleet: Fleet
    state: RunState = field(default_factory=RunState)
    parts: Parts | None = None
    _engines: asyncio.Task[None] | None = None

    async def execute(self) -> None:
        """Runs to the end or to a stop; raises the CrescendoError that ended it. Leaves no process behind."""
        try:
            with self.board.phase("start"):
                await self._start()
            for index, step in enumerate(self.config.steps):
                if index < self.state.step_index or self.control.stop_requested:
                    continue
                self.state.step_index = index
                self.board.status.step = step.kind
                await (self._supervise(step) if step.kind == "sft" else self._reinforce(step.rl))
            await self._end()
        finally:
            if self._engines is not None:
                self._engines.cancel()
                await asyncio.gather(self._engines, return_exceptions=True)
            await self.fleet.stop()
            for left in stale_shm_files(self.folder.run_id()):
                left.unlink(missing_ok=True)

    # Start --------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        await asyncio.to_thread(prepare_policy, self.config, self.folder)
        url = await self.fleet.start_buffer()
        self.buffer: ExperienceBuffer = await connect(url, self.folder.run_id())
        self.lease = DeviceLease(self.buffer, self.board, on_gpu=self.fleet.uses_gpu)
        await self.lease.take_over()
        loading = asyncio.create_task(asyncio.to_thread(Dataset.load, self.config, self.folder))
        await self.fleet.start_services(self._ready)
        self._engines = asyncio.create_task(self._start_engines())
        await self.fleet.start_trainer()
        self._ready("trainer", self.board.elapsed_s)
        self.data = await loading
        self.commits = Commits(self.config, self.folder, self.buffer, self.lease, self.board)
        await recovery.restore_trainer(self)

    def _ready(self, name: str, seconds: float) -> None:
        self.board.seconds[f"start_{name}"] = self.board.elapsed_s
        self.board.event("service.ready", f"{name} is ready after {self.board.elapsed_s:.1f} s", seconds=seconds)

    async def _start_engines(self) -> None:
        count = self.config.rollout.num_engines
        await asyncio.gather(*(self.fleet.start_engine(index) for index in range(count)))
        self._ready("engines", self.board.elapsed_s)

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
        loop = self.rebuild_loop(step)
        failures = 0
        while True:
            committed = self.board.status.committed_iteration
            try:
                await recovery.replay(loop)
                await self._enter(loop)
                await loop.run()
                break
            except CrescendoError as error:
                failures = 1 if self.board.status.committed_iteration > committed else failures + 1
                if not error.retryable or failures > MAX_RECOVERIES or self.control.stop_requested:
                    raise
                self.board.event("run.recovering", f"attempt {failures}: {error}", severity="warning")
                await asyncio.sleep(RECOVERY_BACKOFF_S * failures)
                loop = await recovery.recover(self, loop)
            finally:
                await loop.parts.scoring.stop()
        if self.control.stop_requested and self.control.commit_on_stop and not loop.stages.finished:
            await loop.commit()

    async def _enter(self, loop: Reinforcement) -> None:
        """Brings weights to the engines and measures the starting point, once."""
        parts = loop.parts
        with self.board.phase("publish", self.state.iteration):
            await parts.switch_to_rollout()
        parts.show_stages(loop.stages)
        parts.scoring.start()
        if self.state.accuracy_sft is None:
            with self.board.phase("validate", 0):
                facts = await parts.validation.run(parts.step.stages[-1])
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
        return Parts(
            config=self.config, step=step, folder=self.folder, fleet=self.fleet, buffer=self.buffer, lease=self.lease,
            board=self.board, control=self.control, state=self.state, sync=sync,
            rollouts=Rollouts(self.config, step, *shared, self.control, self.data.tokenizer),
            scoring=ScoringLoop(self.config, *shared, self.data.tokenizer),
            validation=Validation(
                self.config, step, self.fleet, self.data.tokenizer,
                self.data.validation.prompts[: step.validation.num_prompts],
            ),
            commits=self.commits, tokenizer=self.data.tokenizer, prompts=self.data.train.prompts,
            prompt_index={p.prompt_id: index for index, p in enumerate(self.data.train.prompts)},
        )  # fmt: skip

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
            final = await self.parts.validation.run(self.parts.step.stages[-1])
        self.state.accuracy_final = final.accuracy
        self.board.metrics(
            "end",
            {"iteration": float(self.state.iteration), "validation_accuracy": final.accuracy, "length": final.length},
        )
        self.state.step_index = len(self.config.steps)
        await self.parts.switch_to_training()
        with self.board.phase("export"):
            request = trainer_pb2.ExportModelRequest(
                fence=self.lease.fence, path=str(self.folder.export.resolve()), dtype=self.config.model.dtype
            )
            await self.fleet.trainer.call("ExportModel", request, timeout_s=self.config.deadlines.checkpoint_s)
        failpoints.reach("finish.exported")
        await self.parts.commit()
        failpoints.reach("finish.committed")
