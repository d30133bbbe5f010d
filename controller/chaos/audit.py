"""The promises of a run, held against the evidence. Pure: evidence in, broken promises out, each naming its victim.

    ledger      every opened group is consumed once in the surviving line, or open, complete, abandoned, or
                dropped with a reason; what left the buffer is in the archive
    once        no trajectory is in two recorded batches of one line; no iteration has two batches
    epoch       with epoch sampling every prompt is drawn equally often, up to one
    attested    every trained token comes from an engine that had attested its weight version, with its digest
    commits     every file that a manifest names is there; the newest manifest's line is the one that survives
    silence     no wait over SILENCE_S without an event or a row of metrics
    finished    the run came to its end

A *line* is a branch with its ancestors: branch b, its parent up to the iteration where b starts, and so on.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crescendo.common.types import GroupId, GroupState, TrajectoryId
from crescendo.controller.chaos.evidence import Evidence
from crescendo.proto.v1 import trainer_pb2

SILENCE_S = 60.0

Line = dict[int, float]  # branch -> its last iteration that counts


@dataclass(frozen=True)
class Broken:
    """A promise that was not kept. promise: its name above; what: who suffered, and how."""

    promise: str
    what: str


def audit(evidence: Evidence, *, down_s: Sequence[tuple[float, float]] = ()) -> list[Broken]:
    """Every broken promise; none for a run that kept them all.

    down_s: spans (Unix seconds) in which no process of the run was meant to live, such as between a death of
    everything and the resumption by hand.
    """
    rules = (_ledger, _once, _epoch, _attested, _commits, _finished)
    return [
        *(Broken(rule.__name__[1:], what) for rule in rules for what in rule(evidence)),
        *(Broken("silence", what) for what in silences(evidence.moments, down_s)),
    ]


def line_of(branch: int, branches: dict[int, tuple[int, int]]) -> Line:
    """The line that ends with a branch."""
    line: Line = {branch: float("inf")}
    limit = float("inf")
    while branch in branches:
        branch, iteration = branches[branch]
        limit = min(limit, float(iteration))
        line[branch] = limit
    return line


def surviving_branch(evidence: Evidence) -> int:
    """The newest manifest's branch; a branch that no manifest names has not happened."""
    return evidence.manifests[-1].branch if evidence.manifests else 0


def batches_on(line: Line, evidence: Evidence) -> list[trainer_pb2.TrainBatch]:
    """Recorded batches of a line, in order of training."""
    found = [
        (at, batch)
        for at, batches in evidence.history.batches.items()
        for batch in batches
        if at[1] <= line.get(at[0], -1)
    ]
    return [batch for _, batch in sorted(found, key=lambda pair: pair[0])]


def _ledger(evidence: Evidence) -> Iterator[str]:
    batches = batches_on(line_of(surviving_branch(evidence), evidence.branches), evidence)
    trained: dict[GroupId, int] = {GroupId(one.group_id): batch.iteration for batch in batches for one in batch.groups}
    for lost in sorted(evidence.history.opened - evidence.groups.keys()):
        yield f"group {lost} was opened and is gone."
    for group in evidence.groups.values():
        name = f"group {group.group_id}"
        if group.archived and group.group_id not in evidence.archived_groups:
            yield f"{name} is in neither the buffer nor the archive, whose {group.archived} should have it."
        if group.state is GroupState.DROPPED and not group.drop_reason:
            yield f"{name} is dropped without a reason."
        if group.state is GroupState.CONSUMED:
            at = trained.get(group.group_id)
            if at is None and evidence.history.complete:
                yield f"{name} is consumed by iteration {group.consumed_iteration}, but in no batch that survives."
            elif at is not None and at != group.consumed_iteration:
                yield f"{name} is consumed by iteration {group.consumed_iteration}, but was trained in {at}."
        elif group.group_id in trained:
            yield f"{name} was trained in iteration {trained[group.group_id]}, but is {group.state}."
    for stranger in sorted(trained.keys() - evidence.groups.keys()):
        yield f"group {stranger} was trained in iteration {trained[stranger]}, but the ledger does not know it."


def _once(evidence: Evidence) -> Iterator[str]:
    for (branch, iteration), batches in sorted(evidence.history.batches.items()):
        if len(batches) > 1:
            yield f"iteration {iteration} of branch {branch} has {len(batches)} different batches."
    for branch in (0, *sorted(evidence.branches)):
        seen: dict[TrajectoryId, int] = {}
        for batch in batches_on(line_of(branch, evidence.branches), evidence):
            for name in (TrajectoryId(one) for group in batch.groups for one in group.trajectory_ids):
                if name in seen:
                    yield f"trajectory {name} is trained in iterations {seen[name]} and {batch.iteration}."
                seen[name] = batch.iteration


def _epoch(evidence: Evidence) -> Iterator[str]:
    for step in evidence.config.steps:
        if step.kind != "rl" or step.rl.curriculum.order != "epoch":
            continue
        drawn = Counter(group.prompt_id for group in evidence.groups.values())
        (most, often), (least, seldom) = drawn.most_common(1)[0], drawn.most_common()[-1]
        if often - seldom > 1:
            yield f"prompt {most} was drawn {often} times, and prompt {least} {seldom} times."
        if often > 1 and len(drawn) < evidence.config.data.train.num_prompts:
            yield f"prompt {most} was drawn {often} times before every prompt was drawn once."


def _attested(evidence: Evidence) -> Iterator[str]:
    proven = {(one.worker_id, one.version): one.digest for one in evidence.attested}
    published = {record.version: f"{record.manifest.digest:016x}" for record in evidence.weights}
    for (worker, version), digest in sorted(proven.items()):
        if published.get(version) != digest:
            yield f"{worker} attested weight version {version} as {digest}; published was {published.get(version)}."
    surviving = line_of(surviving_branch(evidence), evidence.branches)
    for batch in batches_on(surviving, evidence):
        for name in (TrajectoryId(one) for group in batch.groups for one in group.trajectory_ids):
            if name not in evidence.origins:
                yield f"trajectory {name} was trained, and neither buffer nor archive has its tokens."
            for origin in evidence.origins.get(name, ()):
                if (origin.worker_id, origin.weight_version) not in proven:
                    yield (
                        f"trajectory {name}: {origin.num_tokens} tokens by {origin.worker_id or 'nobody'} with weight "
                        f"version {origin.weight_version}, which it never attested."
                    )


def _commits(evidence: Evidence) -> Iterator[str]:
    for name in evidence.missing_files:
        yield f"checkpoint file {name} is missing or cut."
    for manifest in evidence.manifests:
        if manifest.branch and manifest.branch not in evidence.branches:
            yield f"commit {manifest.sequence} is of branch {manifest.branch}, which the ledger does not know."


def silences(moments: Sequence[float], down_s: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Gaps over SILENCE_S between moments, less the time in which the run was down."""
    for before, after in itertools.pairwise(moments):
        asleep = sum(max(0.0, min(after, end) - max(before, start)) for start, end in down_s)
        if after - before - asleep > SILENCE_S:
            yield f"{after - before - asleep:.0f} s without an event, from Unix time {before:.0f} on."


def _finished(evidence: Evidence) -> Iterator[str]:
    if not evidence.finished:
        yield "the run has no summary: it did not come to its end."
