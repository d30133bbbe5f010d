"""The collaborators of the loop, and what needs several of them: switches, commits, rollbacks, status."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from crescendo.buffer import ExperienceBuffer
from crescendo.common import failpoints
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.errors import CheckpointError, CrescendoError, WorkerLostError
from crescendo.common.leases import LeaseState, Share
from crescendo.common.runfolder import RunFolder
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.launch import Fleet, Supervisor, Worker
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.commits import Commits, list_manifests
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.rollouts import Rollouts
from crescendo.controller.loop.scoring import ScoringLoop
from crescendo.controller.loop.state import RunState
from crescendo.controller.loop.sync import SyncFacts, WeightSync
from crescendo.controller.loop.validation import Validation, ValidationFacts
from crescendo.controller.stages import StageScheduler, Transition, nearest_commit
from crescendo.proto.v1 import common_pb2, controller_pb2

PACE_SMOOTHING = 0.2  # weight of the newest iteration in the expected seconds an iteration


@dataclass
class Parts:
    """One step's collaborators. prompts: training prompts by curriculum index; prompt_index: id to index."""

    config: Config
    step: RlStepConfig
    folder: RunFolder
    fleet: Fleet
    supervisor: Supervisor
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board
    control: Control
    state: RunState
    sync: WeightSync
    rollouts: Rollouts = field(init=False)
    scoring: ScoringLoop
    validation: Validation
    commits: Commits
    tokenizer: Tokenizer
    prompts: Sequence[common_pb2.Prompt]
    prompt_index: Mapping[str, int] = field(default_factory=dict)
    _pace_s: float = 0.0

    async def switch_to_training(self) -> None:
        """Engines let go of the devices, proven; the trainer takes them. A lost engine holds none."""
        await self.commits.settle()
        await self.lease.move(LeaseState.RECLAIMING)
        while ready := [engine for engine in self.fleet.engines if engine.is_ready]:
            try:
                await self.lease.release_engines(ready)
            except CrescendoError as error:
                await self._only_engines_lost(error)
            else:
                break
        await self.lease.move(LeaseState.TRAIN)
        await self.lease.acquire_trainer(self.fleet.trainer)

    async def switch_to_rollout(self) -> SyncFacts:
        """The newest weights reach every engine, attested; the trainer lets go, proven."""
        state = self.state
        await self.lease.move(LeaseState.OFFLOADING)
        await self.lease.shed_trainer(self.fleet.trainer)
        await self.lease.move(LeaseState.PUBLISHING)
        publish_s = 0.0
        if self.sync.manifest.version != state.weight_version:
            record = await self.buffer.weights(state.weight_version)
            publish_s = await self.sync.publish(
                self.fleet.trainer,
                version=state.weight_version,
                parent=record.parent if record else 0,
                branch=state.branch,
                iteration=state.iteration,
            )
        facts = await self.admit_engines()
        await self.sync.retire(self.fleet.trainer)
        facts.publish_s = publish_s
        return facts

    # Engines come and go --------------------------------------------------------------------------------

    async def admit_engines(self) -> SyncFacts:
        """Every engine, replaced first where it was lost, takes the devices and proves the published weights.

        While the trainer still holds its weights, engines take theirs; their caches follow when it has let go.
        """
        while True:
            if not all(engine.is_ready and not self.lease.starts_whole(engine) for engine in self.fleet.engines):
                await self._trainer_out()
            engines = await asyncio.gather(*(self._present(engine.worker_id) for engine in self.fleet.engines))
            try:
                if self.lease.state is LeaseState.PUBLISHING:
                    await self.lease.acquire_engines(engines, Share.WEIGHTS)
                    attestations = await self.sync.load(engines)
                    await self._trainer_out()
                    await self.lease.acquire_engines(engines)
                else:
                    await self.lease.acquire_engines(engines)
                    attestations = await self.sync.load(engines)
                return await self.sync.admit(engines, attestations)
            except CrescendoError as error:
                await self._only_engines_lost(error)

    async def _trainer_out(self) -> None:
        """The trainer lets go of what it holds, proven, and engines may take all."""
        if self.lease.state is LeaseState.PUBLISHING:
            await self.lease.release_trainer(self.fleet.trainer)
            await self.lease.move(LeaseState.ROLLOUT)

    async def rejoin(self, name: str) -> Worker:
        """A new or a lost engine's successor, with the published weights, admitted; what `Rollouts` calls."""
        engine = await self._present(name)
        await self.lease.acquire_engines([engine])
        await self.sync.admit([engine], await self.sync.load([engine]))
        return engine

    async def validate(self, stage: StageConfig) -> ValidationFacts:
        """Validates; an engine that is lost meanwhile is replaced, and it is done again."""
        while True:
            try:
                return await self.validation.run(stage)
            except CrescendoError as error:
                await self._only_engines_lost(error)
                await self.admit_engines()

    async def _present(self, name: str) -> Worker:
        found = self.fleet.workers.get(name)
        if found is not None and found.is_ready:
            return found
        if why := self.fleet.cluster.why_lost():  # nothing can be placed before the next attempt starts Ray again
            raise WorkerLostError(f"{name} cannot be replaced: {why}.")
        start = partial(self.fleet.ensure_engine, int(name.rsplit("-", 1)[1]))
        return await self.supervisor.insist(name, name, start, fatal=False)

    async def _only_engines_lost(self, error: CrescendoError) -> None:
        """Returns when engines alone were lost; raises the error when it is another, or more is lost."""
        if error.retryable:
            await self.supervisor.look()
            if self.fleet.trainer.is_ready and not all(engine.is_ready for engine in self.fleet.engines):
                return
        raise error

    @asynccontextmanager
    async def trainer_resident(self) -> AsyncIterator[None]:
        """Borrows the devices for the trainer: to save, load or export. Engines serve again afterwards."""
        borrowed = self.lease.state is LeaseState.ROLLOUT
        if borrowed:
            await self.switch_to_training()
        yield
        if borrowed:
            await self.switch_to_rollout()

    async def commit(self, protect_from: int | None = None, *, beside: bool = False) -> None:
        """Commits the state as it stands; the trainer must be resident. beside: only begins to."""
        keep = self.step.checkpoints.keep
        commit = self.commits.begin if beside else self.commits.commit
        await commit(self.fleet.trainer, self.state, keep=keep, protect_from=protect_from)

    async def roll_back(self, transition: Transition) -> None:
        """Goes back to the commit nearest to the transition's target, on a new branch.

        The ledger never rewinds: groups consumed after that commit become abandoned. Raises CheckpointError
        when no commit of the stage is left to return to.
        """
        manifests = {m.iteration: m for m in list_manifests(self.folder) if m.branch == self.state.branch}
        target = nearest_commit(transition.rollback_iteration, manifests)
        if target is None:
            raise CheckpointError(
                f"the gate of stage {transition.from_stage} returns to iteration {transition.rollback_iteration}, "
                "but no commit is left.",
                fix="Lower rl.checkpoints.every_iterations.",
            )
        manifest = manifests[target]
        branch = await self.buffer.open_branch(
            self.lease.fence, parent=self.state.branch, from_iteration=target, drop_partials=True
        )
        failpoints.reach("rollback.opened")
        async with self.trainer_resident():
            await self.commits.load(self.fleet.trainer, manifest, manifest.weight_version)
            self.state.branch = branch
            self.state.weight_version = manifest.weight_version
            self.state.optimizer_step = int(manifest.state["optimizer_step"])
            failpoints.reach("rollback.loaded")
        self.board.event(
            "branch.opened", f"branch {branch} starts from iteration {target} ({transition.rollback})", target=target
        )

    def eta_s(self, stages: StageScheduler, iteration: int, seconds: float) -> float:
        """Seconds until every later stage's max_iterations: the longest the run may still take."""
        self._pace_s = seconds if not self._pace_s else self._pace_s + PACE_SMOOTHING * (seconds - self._pace_s)
        later = sum(stage.max_iterations for stage in self.step.stages[stages.index + 1 :])
        here = stages.stage.max_iterations - (iteration - stages.entered_iteration + 1)
        return self._pace_s * (max(0, here) + later)

    def show_stages(self, stages: StageScheduler) -> None:
        """Copies the scheduler's view into the status."""
        status = self.board.status
        del status.stages[:]
        for config, record in zip(self.step.stages, stages.records, strict=True):
            is_current = record.name == stages.stage.name and not stages.finished
            shown = controller_pb2.StageStatus(
                name=record.name,
                state="active" if is_current else "done" if record.left_by else "waiting",
                max_response_tokens=config.max_response_tokens,
                entered_iteration=record.entered_iteration,
                left_by=record.left_by,
                accuracy=record.accuracy or 0.0,
                gate=config.gate.name,
                gate_report=stages.gate_report().reason if is_current else "",
            )
            status.stages.append(shown)
        # An iteration that completes no group counts for no stage, so that there may be more of them.
        most = sum(stage.max_iterations for stage in self.step.stages)
        status.max_iterations = max(most, status.iteration)
        del status.workers[:]
        status.workers.extend(worker.status for worker in self.fleet.workers.values() if worker.client is not None)
