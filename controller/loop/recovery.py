"""Restoring a run: at the start of a controller, and in the middle after a lost worker.

    newest manifest -> trainer loads the checkpoint -> recorded batches above it are trained again, in order

Nothing is generated again: a recorded batch names trajectories that lie in the buffer. Weights made so get new
versions with their parents named. Groups that were opened but not recorded are simply still open.

The one exception is `run.deterministic`: what an iteration that was not recorded has generated is forgotten, and
generated again from where the iteration began, because its bits depend on everything that ran in the same steps.
"""

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from crescendo.common import failpoints
from crescendo.common.config.layouts import has_device_counts
from crescendo.common.errors import CrescendoError
from crescendo.common.telemetry import read_jsonl
from crescendo.common.types import GroupId, TrajectoryId
from crescendo.controller.launch import Worker
from crescendo.controller.loop import batches, relayout
from crescendo.controller.loop.commits import list_manifests, manifest_path, seal
from crescendo.controller.loop.run import Reinforcement
from crescendo.controller.loop.state import RunState
from crescendo.proto.v1 import rollout_pb2, trainer_pb2

if TYPE_CHECKING:
    from crescendo.controller.loop.session import Session

CALL_MARGIN_S = 5.0


async def restore_trainer(session: "Session") -> None:
    """Gives the trainer the newest commit, or the initial policy when there is none."""
    manifests = await asyncio.to_thread(list_manifests, session.folder)
    if not manifests:
        await _load_initial(session)
        return
    manifest = manifests[-1]
    session.state = RunState.from_dict(manifest.state)
    session.control.num_engines = session.control.num_engines or session.state.num_engines or None
    session.board.seconds.update(session.state.seconds)
    await _load_model(session, 0)
    await session.commits.load(session.fleet.trainer, manifest, manifest.weight_version)
    failpoints.reach("resume.loaded")
    await session.buffer.commit(
        session.lease.fence, manifest.branch, manifest.iteration, manifest_path(session.folder, manifest.sequence).name
    )
    failpoints.reach("resume.rolled")
    session.board.status.committed_iteration = manifest.iteration
    session.board.event("run.restored", f"from commit {manifest.sequence}, iteration {manifest.iteration}")


async def _load_initial(session: "Session") -> None:
    version = await session.buffer.next_version(session.lease.fence, parent=0, branch=0, iteration=0)
    await _load_model(session, version)
    session.state = RunState(weight_version=version)


async def _load_model(session: "Session", version: int) -> None:
    # Trainers with folders of their own have the model elsewhere, and know where.
    path = "" if session.config.checkpoint_store.carries_inputs else str(session.folder.model.resolve())
    request = trainer_pb2.LoadModelRequest(fence=session.lease.fence, path=path, weight_version=version)
    await session.fleet.trainer.call("LoadModel", request, timeout_s=session.config.deadlines.start_s)


async def replay(loop: Reinforcement) -> None:
    """Trains recorded batches above the commit again and brings scheduler and curriculum up to them."""
    parts = loop.parts
    state = parts.state
    rows = _known_rows(loop)
    for batch in await parts.buffer.batches_after(state.branch, state.iteration):
        for sampled in range(state.iteration + 1, batch.iteration + 1):
            loop.curriculum.draw(sampled, loop.stages.stage.prompts_per_iteration, branch=state.branch)
        version = await parts.buffer.next_version(
            parts.lease.fence, parent=state.weight_version, branch=state.branch, iteration=batch.iteration
        )
        batch.parent_version, batch.new_version = state.weight_version, version
        begun = time.monotonic()
        with parts.board.phase("train", batch.iteration):
            trained = await loop.step(batch)
        failpoints.reach("resume.retrained")
        groups = await parts.buffer.load_groups([GroupId(group.group_id) for group in batch.groups], with_tokens=False)
        rewards = {
            TrajectoryId(trajectory): reward
            for group in batch.groups
            for trajectory, reward in zip(group.trajectory_ids, group.rewards, strict=True)
        }
        facts = batches.facts_of(groups, rewards)
        loop.remember_rates(groups)
        state.iteration = batch.iteration
        row = rows.get((state.branch, batch.iteration))
        if row is None:  # lost between the batch and its row
            loop.record(batch.iteration, {**asdict(facts), **trained}, None, time.monotonic() - begun)
        accuracy = None if row is None else row.get("validation_accuracy")
        transition = loop.observe(batch.iteration, facts, accuracy)
        parts.board.event("batch.retrained", f"iteration {batch.iteration} from the redo log", version=version)
        if transition is not None:
            await loop.leave_stage(transition)
            await loop.commit()
    if max(await parts.buffer.branches(), default=0) > state.branch:
        # A rollback was under way when the run died, and its commit is missing. A gate has decided again by now; what
        # is left is a person's promotion, of which only the branch remains.
        wish = parts.control.promote_to
        await loop.leave_stage(loop.stages.promote(wish if wish in loop.stages.later else ""))
        await loop.commit()
        parts.control.entered(loop.stages.later)


def _known_rows(loop: Reinforcement) -> dict[tuple[int, int], dict[str, float]]:
    """The run folder's rows of metrics, by branch and iteration; one that was validated counts before others."""
    rows = [row for row in read_jsonl(loop.parts.folder.metrics) if "branch" in row]
    rows.sort(key=lambda row: "validation_accuracy" in row)
    return {(int(row["branch"]), int(row["iteration"])): row for row in rows}


async def bring_back(session: "Session") -> None:
    """Replaces what is lost and fences out what is not; the trainer holds the devices afterwards."""
    await session.supervisor.look()
    await session.lease.take_over()
    if not session.sealed:
        epoch = session.lease.fence.epoch
        await session.patience.through(lambda: asyncio.to_thread(seal, session.folder, epoch))
        session.sealed = True
    await _adopt_layout(session)
    for engine in session.fleet.engines:
        await _quiet(session, engine)
    await session.bring_up_services()
    await session.lease.acquire_trainer(session.fleet.trainer)


async def _adopt_layout(session: "Session") -> None:
    """Ends what does not fit the layout of the newest commit's stage; what is started after this fits."""
    manifests = await asyncio.to_thread(list_manifests, session.folder)
    stage, layout = relayout.committed(session.config, manifests[-1] if manifests else None)
    before, board = session.fleet.layout, session.board
    board.status.layout = str(layout)
    if has_device_counts(session.config):  # the operator reads this, and gives the pods that it takes
        board.status.stage_devices = layout.trainer_devices
        board.status.stage_rollout_devices = layout.rollout_devices
    if layout == before:
        return
    ended = await session.fleet.adopt(layout)
    failpoints.reach("layout.ended")
    message = f"stage {stage} runs on {layout}" + (f", after {before}" if ended else "")
    board.event("stage.layout", message, stage=stage, ended=" ".join(ended))


async def _quiet(session: "Session", engine: Worker) -> None:
    """Makes an engine let go of the devices, whatever it was doing; one that does not is replaced."""
    pause_s = session.config.deadlines.pause_s
    request = rollout_pb2.PauseRequest(fence=session.lease.fence, deadline_seconds=pause_s)
    try:
        if engine.is_ready:
            await engine.call("Pause", request, timeout_s=pause_s + CALL_MARGIN_S)
            await session.lease.release_engines([engine])
    except CrescendoError as error:
        engine.lose(f"it could not be brought to rest: {error}")
