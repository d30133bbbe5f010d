"""Each promise, kept and broken: the audit must see what a run did wrong, and nothing else."""

from dataclasses import replace

import pytest

from crescendo.buffer import WeightRecord
from crescendo.common.config.rl import CurriculumConfig, RlStepConfig
from crescendo.common.config.schema import Config, StepConfig
from crescendo.common.types import Group, GroupId, GroupState, PromptId, TrajectoryId, group_id, trajectory_id
from crescendo.controller.chaos.audit import audit, line_of
from crescendo.controller.chaos.evidence import Attested, Evidence, Origin
from crescendo.controller.chaos.history import History
from crescendo.controller.loop.commits import Manifest
from crescendo.proto.v1 import common_pb2, trainer_pb2

ENGINE, VERSION, DIGEST = "rollout-0.0", 3, 0xABC


def group(iteration: int, state: GroupState = GroupState.CONSUMED, *, branch: int = 0, **fields: object) -> Group:
    identity = group_id(branch, iteration, 0)
    return Group(
        identity, PromptId(f"p{iteration}"), state, branch, iteration, "8k", (trajectory_id(identity, 0),),
        consumed_iteration=iteration if state in (GroupState.CONSUMED, GroupState.ABANDONED) else -1,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def batch(iteration: int, *groups: GroupId, branch: int = 0) -> trainer_pb2.TrainBatch:
    return trainer_pb2.TrainBatch(
        branch=branch,
        iteration=iteration,
        groups=[trainer_pb2.TrainGroup(group_id=one, trajectory_ids=[trajectory_id(one, 0)]) for one in groups],
    )


def manifest(branch: int, iteration: int) -> Manifest:
    return Manifest(iteration, f"i{iteration}", branch, iteration, VERSION, {}, [])


def sound_run() -> Evidence:
    """Branch 0 trained iterations 1 to 3; branch 1 starts from 2 and trained 4; one group each was open and dropped."""
    found = [
        group(1), group(2), group(3, GroupState.ABANDONED), group(4, branch=1),
        group(5, GroupState.OPEN, branch=1), group(6, GroupState.DROPPED, branch=1, drop_reason="max_spans"),
    ]  # fmt: skip
    groups = {one.group_id: one for one in found}
    trained = [one for one in found if one.consumed_iteration > 0]
    return Evidence(
        config=Config(),
        finished=True,
        groups=groups,
        origins={TrajectoryId(one.trajectory_ids[0]): (Origin(ENGINE, VERSION, 8),) for one in trained},
        archived_groups=set(),
        branches={1: (0, 2)},
        manifests=[manifest(0, 2), manifest(1, 4)],
        missing_files=[],
        weights=[WeightRecord(VERSION, 0, 0, 0, common_pb2.WeightManifest(version=VERSION, digest=DIGEST))],
        attested=[Attested(ENGINE, VERSION, f"{DIGEST:016x}")],
        history=History(
            complete=True,
            opened=set(groups),
            batches={
                (one.branch, one.consumed_iteration): [batch(one.consumed_iteration, one.group_id, branch=one.branch)]
                for one in trained
            },
        ),
        moments=[0.0, 30.0, 85.0],
    )


def broken(evidence: Evidence) -> list[tuple[str, str]]:
    return [(one.promise, one.what) for one in audit(evidence)]


def only(evidence: Evidence) -> tuple[str, str]:
    (found,) = broken(evidence)
    return found


def test_a_sound_run_breaks_nothing() -> None:
    assert broken(sound_run()) == []


def test_a_line_ends_where_its_branch_left_its_parent() -> None:
    branches = {1: (0, 5), 2: (1, 9), 3: (1, 3)}
    assert line_of(2, branches) == {2: float("inf"), 1: 9.0, 0: 5.0}
    assert line_of(3, branches) == {3: float("inf"), 1: 3.0, 0: 3.0}


def test_a_group_that_is_gone_is_named() -> None:
    run = sound_run()
    del run.groups[group_id(1, 5, 0)]
    assert only(run) == ("ledger", "group b1-i000005-d0000 was opened and is gone.")


def test_a_group_dropped_without_a_reason_is_named() -> None:
    run = sound_run()
    name = group_id(1, 6, 0)
    run.groups[name] = replace(run.groups[name], drop_reason="")
    assert only(run) == ("ledger", f"group {name} is dropped without a reason.")


def test_a_group_that_was_trained_and_is_open_again_is_named() -> None:
    run = sound_run()
    run.groups[group_id(0, 1, 0)] = group(1, GroupState.OPEN)
    assert only(run) == ("ledger", "group b0-i000001-d0000 was trained in iteration 1, but is open.")


def test_a_group_that_counts_as_trained_and_is_in_no_batch_is_named() -> None:
    run = sound_run()
    del run.history.batches[0, 1]
    assert only(run)[1].startswith("group b0-i000001-d0000 is consumed by iteration 1, but in no batch")


def test_a_group_that_the_archive_should_have_is_named() -> None:
    run = sound_run()
    run.groups[group_id(0, 1, 0)] = group(1, archived="data/x.parquet")
    assert only(run)[0] == "ledger"
    run.archived_groups.add(group_id(0, 1, 0))
    assert broken(run) == []


def test_a_trajectory_trained_twice_in_a_line_is_named_also_across_branches() -> None:
    run = sound_run()
    run.history.batches[1, 4][0].groups.add().CopyFrom(run.history.batches[0, 2][0].groups[0])
    promises = dict(broken(run))
    assert promises["once"] == "trajectory b0-i000002-d0000-s000 is trained in iterations 2 and 4."


def test_the_same_trajectory_in_an_abandoned_iteration_and_the_new_branch_is_no_second_training() -> None:
    run = sound_run()
    run.groups[group_id(0, 3, 0)] = replace(group(3), consumed_iteration=4)
    run.history.batches[1, 4][0].groups.add().CopyFrom(run.history.batches[0, 3][0].groups[0])
    assert broken(run) == []


def test_two_different_batches_for_one_iteration_are_seen() -> None:
    run = sound_run()
    run.history.batches[0, 1].append(batch(1, group_id(0, 5, 0)))
    assert ("once", "iteration 1 of branch 0 has 2 different batches.") in broken(run)


@pytest.mark.parametrize("origin", [Origin("rollout-1.0", VERSION, 8), Origin(ENGINE, 2, 8), Origin("", VERSION, 8)])
def test_tokens_of_a_version_that_their_engine_never_attested_are_named(origin: Origin) -> None:
    run = sound_run()
    name = trajectory_id(group_id(0, 2, 0), 0)
    run.origins[name] = (*run.origins[name], origin)
    promise, what = only(run)
    assert promise == "attested"
    assert what.startswith(f"trajectory {name}: 8 tokens by")


def test_an_attestation_of_other_bytes_than_were_published_is_seen() -> None:
    run = sound_run()
    run.attested[0] = Attested(ENGINE, VERSION, "0" * 16)
    assert only(run)[0] == "attested"


def test_an_epoch_that_draws_a_prompt_twice_before_all_are_drawn_once_is_seen() -> None:
    run = sound_run()
    run.config.steps = [StepConfig(kind="rl", rl=RlStepConfig(curriculum=CurriculumConfig(order="epoch")))]
    run.config.data.train.num_prompts = 6
    assert broken(run) == []
    run.groups[group_id(1, 5, 0)] = replace(run.groups[group_id(1, 5, 0)], prompt_id=PromptId("p1"))
    assert only(run) == ("epoch", "prompt p1 was drawn 2 times before every prompt was drawn once.")


def test_silence_counts_but_not_while_the_run_was_down() -> None:
    run = sound_run()
    run.moments.append(85.0 + 61.0)
    assert only(run)[0] == "silence"
    assert audit(run, down_s=[(100.0, 110.0)]) == []


def test_a_run_without_an_end_and_a_commit_without_its_files_are_seen() -> None:
    run = sound_run()
    run.finished, run.missing_files = False, ["i2/weights of commit 2"]
    assert [promise for promise, _ in broken(run)] == ["commits", "finished"]
