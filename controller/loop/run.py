"""The loop of an RL step. One iteration, as DESIGN draws it, is `Reinforcement.iterate`:

    sample -> roll out -> score -> switch -> train -> publish -> validate -> decide -> commit

    phase      waits for                          unblocks
    sample     the ledger                         engines (they claim)
    rollout    drained engines, or enough groups  the switch
    score      the scoring loop                   the batch
    switch     proof that engines let go          the trainer
    train      the redo record, then the step     publishing
    publish    attestations of every engine       the next rollout, validation
    commit     the trainer's files, or its copy   pruning

Each collaborator is a file of this folder. A crash anywhere is repaired by `recover` from the newest commit and
the redo log.
"""

import time
from dataclasses import asdict, dataclass

from crescendo.buffer import NewGroup
from crescendo.common import failpoints
from crescendo.common.config.layouts import layout_of
from crescendo.common.types import Group, GroupState, TrajectoryId, group_id
from crescendo.controller.curriculum import Curriculum
from crescendo.controller.loop import batches, relayout
from crescendo.controller.loop.parts import Parts
from crescendo.controller.loop.samples import show_samples
from crescendo.controller.loop.scoring import scorer_specs
from crescendo.controller.stages import IterationFacts, StageScheduler, Transition, TransitionKind
from crescendo.proto.v1 import common_pb2, reward_pb2, trainer_pb2


@dataclass
class Reinforcement:
    """Runs one `rl` step of the run file. parts: the collaborators; stages, curriculum: pure decisions."""

    parts: Parts
    stages: StageScheduler
    curriculum: Curriculum

    async def run(self) -> None:
        """Iterates until the last stage is left or a stop; the state then stands at a commit."""
        control = self.parts.control
        while not self.stages.finished and not control.stop_requested:
            await control.wait_while_paused()
            await self.iterate(self.parts.state.iteration + 1)

    async def iterate(self, iteration: int) -> None:
        """One iteration. When people interrupt the rollout, it is taken up again by the next call."""
        parts, stage, board = self.parts, self.stages.stage, self.parts.board
        begun = time.monotonic()
        self._show(iteration)
        with board.phase("sample", iteration):
            await self._open_groups(iteration)
        failpoints.reach("sample.opened")
        with board.phase("rollout", iteration):
            rolled = await parts.rollouts.phase(iteration, parts.state.branch, stage, parts.state.weight_version)
        if rolled.interrupted:
            if parts.config.run.deterministic:
                await parts.scoring.settle(parts.config.deadlines.scoring_s)
                await self.forget_unrecorded()
            return
        failpoints.reach("rollout.parked")
        with board.phase("score", iteration):
            await parts.scoring.settle(parts.config.deadlines.scoring_s)
        failpoints.reach("score.settled")
        with board.phase("switch", iteration):
            await parts.switch_to_training()
        failpoints.reach("switch.reclaimed")
        with board.phase("train", iteration):
            groups, rewards, trained = await self._train(iteration)
        with board.phase("publish", iteration):
            synced = await parts.switch_to_rollout()
        accuracy = await self._validate(iteration)
        failpoints.reach("validate.done")
        parts.state.iteration = iteration
        parts.supervisor.progressed()
        facts = batches.facts_of(groups, rewards)
        known = {**asdict(facts), **trained} if groups else {}
        self.record(iteration, {**asdict(rolled), **asdict(synced), **known}, accuracy, time.monotonic() - begun)
        await self._decide(iteration, self.observe(iteration, facts, accuracy) if groups else None)

    async def forget_unrecorded(self) -> None:
        """In deterministic mode, takes the buffer back to the end of the last recorded iteration."""
        parts, done = self.parts, self.parts.state.iteration
        if not parts.config.run.deterministic:
            return
        num_tokens = await parts.buffer.rewind(parts.lease.fence, done)
        if num_tokens:
            message = f"{num_tokens} tokens of iteration {done + 1} are generated again"
            parts.board.event("iteration.rewound", message, tokens=num_tokens)

    # Sample -------------------------------------------------------------------------------------------

    async def _open_groups(self, iteration: int) -> None:
        parts, stage = self.parts, self.stages.stage
        drawn = self.curriculum.draw(iteration, stage.prompts_per_iteration, branch=parts.state.branch)
        groups = [
            NewGroup(
                group_id=group_id(parts.state.branch, iteration, number),
                prompt=parts.prompts[index],
                branch=parts.state.branch,
                iteration=iteration,
                stage=stage.name,
                num_samples=stage.samples_per_prompt,
                max_response_tokens=stage.max_response_tokens,
            )
            for number, index in enumerate(drawn)
        ]
        parts.scoring.stage, parts.scoring.iteration = stage, iteration
        admission = await parts.buffer.open_groups(parts.lease.fence, groups)
        if refused := len(admission.refused):
            message = f"the buffer has memory for {len(groups) - refused} of {len(groups)} groups: sampling slows"
            parts.board.event("buffer.short", message, severity="warning", groups=len(groups), refused=refused)

    # Train --------------------------------------------------------------------------------------------

    async def _train(self, iteration: int) -> tuple[list[Group], dict[TrajectoryId, float], dict[str, float]]:
        parts, state = self.parts, self.parts.state
        complete = await parts.buffer.groups(GroupState.COMPLETE)
        loaded = await parts.buffer.load_groups(complete, with_tokens=False)  # the trainer reads those
        groups = [group for group in loaded if batches.scored(group)]
        if not groups:
            return [], {}, {}
        rewards = await self._rewards(groups, iteration)
        version = await parts.buffer.next_version(
            parts.lease.fence, parent=state.weight_version, branch=state.branch, iteration=iteration
        )
        failpoints.reach("train.numbered")
        batch = batches.make_batch(
            parts.config, parts.step, self.stages.stage, groups, rewards,
            branch=state.branch, iteration=iteration, parent_version=state.weight_version,
            new_version=version, optimizer_step=state.optimizer_step,
        )  # fmt: skip
        await parts.buffer.record_batch(parts.lease.fence, batch)
        failpoints.reach("train.recorded")
        trained = await self.step(batch)
        failpoints.reach("train.stepped")
        self.remember_rates(groups)
        await show_samples(parts, groups)
        return groups, rewards, trained

    async def step(self, batch: trainer_pb2.TrainBatch) -> dict[str, float]:
        """One recorded batch through the trainer; also how recovery repeats it."""
        parts, state = self.parts, self.parts.state
        request = trainer_pb2.TrainRequest(
            fence=parts.lease.fence, idempotency_key=f"train-{batch.new_version}", batch=batch
        )
        answer = await parts.fleet.trainer.call("Train", request, timeout_s=parts.config.deadlines.train_s)
        for aside in answer.set_aside:
            message = f"{aside.trajectory_id}: {aside.reason}"
            parts.board.event("trajectory.set_aside", message, severity="warning")
        state.weight_version = answer.weight_version
        state.optimizer_step += batch.num_mini_batches
        state.worst("train_logprob_max_diff", answer.metrics.get("log_prob_difference_max", 0.0))
        return {
            **{f"train_{key}": value for key, value in answer.metrics.items()},
            "trained_tokens": float(answer.num_tokens),
            "train_seconds": answer.seconds,
        }

    async def _rewards(self, groups: list[Group], iteration: int) -> dict[TrajectoryId, float]:
        """The scalar of each trajectory, group-wise components included."""
        parts, stage = self.parts, self.stages.stage
        chain = [scorer for scorer in scorer_specs(parts.config.rewards.group, stage, iteration) if scorer.weight]
        bonus: dict[str, list[common_pb2.RewardComponent]] = {}
        if chain:
            request = reward_pb2.ScoreGroupsRequest(groups=map(batches.group_message, groups), chain=chain)
            timeout_s = parts.config.deadlines.scoring_s
            answer = await parts.fleet.reward.call("ScoreGroups", request, timeout_s=timeout_s, attempts=3)
            bonus = {result.item_id: list(result.components) for result in answer.results}
        penalty = parts.step.repetition.penalty
        return {
            trajectory.trajectory_id: batches.reward_of(
                trajectory, bonus.get(trajectory.trajectory_id, ()), stage, penalty
            )
            for group in groups
            for trajectory in batches.scored(group)
        }

    def remember_rates(self, groups: list[Group]) -> None:
        """Tells the curriculum how often each prompt was answered right."""
        for group in groups:
            index = self.parts.prompt_index.get(group.prompt_id)
            trajectories = batches.scored(group)
            if index is not None and trajectories:
                self.curriculum.record(index, sum(map(batches.is_correct, trajectories)) / len(trajectories))

    # Validate, decide, commit -------------------------------------------------------------------------

    async def _validate(self, iteration: int) -> float | None:
        entered = self.stages.entered_iteration
        every = self.parts.step.validation.every_iterations
        if (iteration - entered + 1) % every:
            return None
        with self.parts.board.phase("validate", iteration):
            return (await self.parts.validate(self.stages.stage)).accuracy

    def observe(self, iteration: int, facts: batches.BatchFacts, accuracy: float | None) -> Transition | None:
        """Tells the gate of an iteration that trained; also how recovery repeats it."""
        return self.stages.observe(IterationFacts(iteration, facts.reward, facts.length, facts.clip_ratio, accuracy))

    async def _decide(self, iteration: int, transition: Transition | None) -> None:
        parts, control = self.parts, self.parts.control
        if transition is None and control.promote_to is not None and control.still_wants(self.stages.later):
            transition = self.stages.promote(control.promote_to)
        if transition is not None:
            await self.leave_stage(transition)
        overdue = parts.commits.overdue
        due = overdue or iteration % parts.step.checkpoints.every_iterations == 0
        if transition is not None or due or control.wants_commit:
            awaited = transition is not None or overdue or control.wants_commit
            await self.commit(beside=parts.config.trainer.async_checkpoint and not awaited)
            control.committed()
        if transition is not None:  # not before the commit: what is lost with it is to be done again
            control.entered(self.stages.later)

    async def leave_stage(self, transition: Transition) -> None:
        """Carries a transition out: rolls back if its gate says so, then enters the next stage."""
        parts = self.parts
        if transition.kind is TransitionKind.PROMOTE and transition.rollback != "last":
            await parts.roll_back(transition)
        self.stages.apply(transition, parts.state.iteration + 1)
        failpoints.reach("stage.left")
        parts.board.event(
            f"stage.{transition.kind}",
            f"{transition.from_stage} left by {transition.left_by}: {transition.reason}",
            facts={"to": transition.to_stage, "rollback": transition.rollback, **transition.facts},
        )  # fmt: skip
        parts.show_stages(self.stages)

    async def commit(self, *, beside: bool = False) -> None:
        """A checkpoint with everything that a resumption needs. beside: its files are written during the next rollout.

        Raises Relayout when its stage wants another layout.
        """
        parts, state = self.parts, self.parts.state
        state.stages, state.curriculum = self.stages.to_dict(), self.curriculum.to_dict()
        state.num_engines = parts.control.num_engines or 0
        protect = None if self.stages.stage.gate.rollback == "last" else self.stages.entered_iteration
        async with parts.trainer_resident():
            await parts.commit(protect_from=protect, beside=beside)
            relayout.require(parts.fleet.layout, layout_of(parts.config, self.stages.stage))
        parts.commits.go_on(parts.fleet.trainer)

    def record(self, iteration: int, row: dict[str, float], accuracy: float | None, seconds: float) -> None:
        """The iteration's row of metrics, for console, plots and people."""
        parts, board = self.parts, self.parts.board
        values = {key: float(value) for key, value in row.items()} | {
            "iteration": float(iteration),
            "branch": float(parts.state.branch),
            "iteration_seconds": seconds,
            "trained_tokens_per_second": row.get("trained_tokens", 0.0) / max(seconds, 1e-9),
        }
        if accuracy is not None:
            values["validation_accuracy"] = accuracy
        parts.state.worst("logprob_max_diff", parts.sync.max_difference)
        board.metrics(self.stages.stage.name, values)
        board.status.eta_seconds = parts.eta_s(self.stages, iteration, seconds)

    def _show(self, iteration: int) -> None:
        parts, status = self.parts, self.parts.board.status
        status.iteration = iteration
        status.stage = self.stages.stage.name
        status.branch = parts.state.branch
        parts.show_stages(self.stages)
