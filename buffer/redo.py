"""The redo log, commits and branches on Redis.

A batch is recorded, and its groups consumed, before the step that trains on it; a commit (a checkpoint whose
manifest is in place) trims what lies below it. All of it waits for the server's disk by WAITAOF.

What that is worth depends on the server's `appendfsync` (docs/decisions/0009): under `always` an answer means that the
disk has it; under `everysec` a killed server may lose up to two seconds of answered writes, these included.
"""

from crescendo.buffer.part import Part
from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2, trainer_pb2


class RedoLog(Part):
    """Records batches, commits and branches."""

    async def record_batch(self, fence: common_pb2.Fence, batch: trainer_pb2.TrainBatch) -> None:
        check_batch(batch)
        packed = batch.SerializeToString(deterministic=True)
        groups = [group.group_id for group in batch.groups]
        await self._client.run("record_batch", fence, batch.branch, batch.iteration, packed, *groups, durable=True)

    async def batches_after(self, branch: int, iteration: int) -> list[trainer_pb2.TrainBatch]:
        (recorded,) = await self._client.read([("HGETALL", self._keys.redo(branch))])
        above = sorted(at for at in (int(field) for field in recorded) if at > iteration)
        return [trainer_pb2.TrainBatch.FromString(recorded[str(at).encode()]) for at in above]

    async def commit(self, fence: common_pb2.Fence, branch: int, iteration: int, manifest: str) -> None:
        await self._client.run("commit", fence, branch, iteration, manifest, durable=True)

    async def committed(self) -> tuple[int, int, str] | None:
        (fields,) = await self._client.read([("HGETALL", self._keys.commit)])
        if not fields:
            return None
        return int(fields[b"branch"]), int(fields[b"iteration"]), fields[b"manifest"].decode()

    async def open_branch(
        self, fence: common_pb2.Fence, *, parent: int, from_iteration: int, drop_partials: bool
    ) -> int:
        branch: int = await self._client.run(
            "open_branch", fence, parent, from_iteration, int(drop_partials), durable=True
        )
        return branch

    async def branches(self) -> dict[int, tuple[int, int]]:
        (fields,) = await self._client.read([("HGETALL", self._keys.branches)])
        origins = {int(branch): origin.decode().split(":") for branch, origin in fields.items()}
        return {branch: (int(parent), int(iteration)) for branch, (parent, iteration) in sorted(origins.items())}


def check_batch(batch: trainer_pb2.TrainBatch) -> None:
    """Raises RequestError for a batch that contradicts itself."""
    ids = [group.group_id for group in batch.groups]
    if not ids or len(set(ids)) != len(ids):
        raise RequestError(
            f"batch of iteration {batch.iteration} names {len(ids)} groups, {len(set(ids))} of them distinct; "
            "it needs at least one, each once.",
            field="batch.groups",
        )
    for group in batch.groups:
        if len(group.rewards) != len(group.trajectory_ids):
            raise RequestError(
                f"group {group.group_id}: {len(group.rewards)} rewards for {len(group.trajectory_ids)} trajectories.",
                field="batch.groups.rewards",
            )
        strangers = [name for name in group.trajectory_ids if not name.startswith(f"{group.group_id}-s")]
        if strangers:
            raise RequestError(
                f"group {group.group_id} has no trajectory {strangers[0]}.", field="batch.groups.trajectory_ids"
            )
