"""export and lineage, over run folders that archivers left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from crescendo.buffer import MemoryBuffer, Scored, Update
from crescendo.buffer.archive.archiver import Archiver, RunFacts
from crescendo.buffer.archive.store import ArchiveStore
from crescendo.cli.lineage import collect, tree
from crescendo.cli.main import main
from crescendo.common.config import load_config
from crescendo.common.config.load import save_resolved
from crescendo.common.runfolder import RunFolder
from crescendo.common.types import IntArray, Segment, TrajectoryState, trajectory_id
from crescendo.proto.v1 import common_pb2
from tests.contract.buffer_cases import batch, new_group

RECIPE = """
run: {name: try}
model: {source: some/model}
steps: [{kind: sft, sft: {data: {name: task, path: clock_sum}}}]
"""
WORDS = ["one", "two", "three", "four"]


def decode(ids: IntArray) -> str:
    return " ".join(WORDS[token % len(WORDS)] for token in ids)


async def train(buffer: MemoryBuffer, fence: common_pb2.Fence, iteration: int, branch: int = 0) -> None:
    """One iteration: a group with a short and a long correct answer and a wrong one; a new version."""
    group = new_group(0, iteration=iteration, branch=branch, samples=3)
    await buffer.open_groups(fence, [group])
    await buffer.claim(fence, "w", limit=9, lease_s=60, iteration=iteration, max_spans=0)
    version = len(await buffer.lineage())
    for sample, (length, verdict) in enumerate(((2, "CORRECT"), (4, "CORRECT"), (3, "WRONG"))):
        one = trajectory_id(group.group_id, sample)
        tokens = np.arange(length, dtype=np.int32)
        log_probs = np.full(length, -0.5, dtype=np.float32)
        segment = Segment(version, iteration, "8k", branch, tokens, log_probs, np.ones(length, dtype=np.bool_))
        ended = Update(one, 0, segment, TrajectoryState.FINISHED, common_pb2.FINISH_REASON_STOP)
        await buffer.flush(fence, "w", [ended])
        judged = common_pb2.RewardComponent(
            name="math",
            raw=float(verdict == "CORRECT"),
            weight=1.0,
            verdict=common_pb2.Verdict.Value(f"VERDICT_{verdict}"),
        )
        await buffer.score(fence, [Scored(one, (judged,))])
    await buffer.record_batch(fence, batch(group, iteration=iteration, branch=branch))
    await buffer.next_version(fence, parent=version, branch=branch, iteration=iteration)


@pytest.fixture
async def folder(tmp_path: Path) -> RunFolder:
    """A finished run: three iterations on branch 0, back to the first, two on branch 1, all archived."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    made = RunFolder.create(tmp_path / "run", "try")
    save_resolved(load_config(recipe), made.config)
    buffer = MemoryBuffer()
    fence = await buffer.acquire_epoch()
    archiver = Archiver(buffer, ArchiveStore(str(made.archive)), RunFacts(made.run_id(), True, decode, decode))
    await archiver.take_over()
    await buffer.next_version(fence, parent=0, branch=0, iteration=0)
    for iteration in (1, 2, 3):
        await train(buffer, fence, iteration)
    await buffer.commit(fence, 0, 3, "commit-00000001.json")
    await archiver.sweep()
    await buffer.open_branch(fence, parent=0, from_iteration=1, drop_partials=True)
    await buffer.next_version(fence, parent=2, branch=1, iteration=4)
    await train(buffer, fence, 5, branch=1)
    await buffer.commit(fence, 1, 5, "commit-00000002.json")
    await archiver.sweep()
    for sequence, branch, iteration, version in ((1, 0, 3, 4), (2, 1, 5, 6)):
        numbers = {"sequence": sequence, "branch": branch, "iteration": iteration, "weight_version": version}
        (made.checkpoints / f"commit-{sequence:08d}.json").write_text(json.dumps(numbers))
    made.metrics.write_text(json.dumps({"unix_seconds": 1.0, "branch": 0, "iteration": 3}) + "\n")
    event = {"unix_seconds": 2.0, "kind": "branch.opened", "message": "branch 1 starts from iteration 1 [best]"}
    made.events.write_text(json.dumps(event) + "\n")
    return made


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_holds_the_surviving_branch(folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sft.jsonl"
    assert main(["export", str(folder.root), "--format", "sft", "--out", str(out), "--shortest"]) == 0
    prompt = {"role": "user", "content": "6 * 7?"}
    assert read(out) == [{"messages": [prompt, {"role": "assistant", "content": "one two"}]}] * 2, "iterations 1 and 5"
    assert "2 examples" in capsys.readouterr().out
    assert main(["export", str(folder.root), "--format", "sft", "--out", str(out)]) == 2, "it exists"
    assert main(["export", str(folder.root), "--format", "sft", "--out", str(out), "--force", "--all"]) == 0
    assert len(read(out)) == 8, "two answers of four iterations"


def test_dpo_and_rollouts(folder: RunFolder, tmp_path: Path) -> None:
    pairs, rollouts = tmp_path / "dpo.jsonl", tmp_path / "rollouts.jsonl"
    common = ["export", str(folder.root), "--style", "standard"]
    assert main([*common, "--format", "dpo", "--out", str(pairs), "--rejected", "longer"]) == 0
    assert {(row["chosen"], row["rejected"]) for row in read(pairs)} == {("one two", "one two three")}
    assert main([*common, "--format", "rollouts", "--out", str(rollouts)]) == 0
    rows = read(rollouts)
    assert {row["consumed_iteration"] for row in rows} == {1, 5}
    assert (rows[0]["token_ids"], rows[0]["log_probs"], rows[0]["loss_mask"]) == ([0, 1], [-0.5, -0.5], [True, True])
    assert rows[0]["segments"][0]["weight_version"] == 1
    assert rows[0]["components"][0]["verdict"] == "correct"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--format", "sft", "--out", "nowhere/x.jsonl"], "existing folder"),
        (["--format", "dpo", "--out", "x.jsonl", "--pairs", "0"], "--pairs is 0"),
        (["--format", "sft", "--out", "x.jsonl", "--max-tokens", "1"], "no group of the archive has a correct answer"),
    ],
)
def test_what_cannot_be_exported_says_why(
    folder: RunFolder, extra: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(folder.root), *extra]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before, "no half file is left"


def test_a_run_without_an_archive(folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.archive.rename(tmp_path / "gone")
    assert main(["export", str(folder.root), "--format", "sft", "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "there is no archive" in capsys.readouterr().err
    assert main(["lineage", str(folder.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source"], [one["version"] for one in told["versions"]]) == ("run folder", [4, 6])


def test_lineage_as_json(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", str(folder.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source"], told["commit"]) == ("archive", [1, 5])
    assert [
        (one["branch"], one["parent"], one["from_iteration"], one["survives_until"]) for one in told["branches"]
    ] == [
        (0, None, None, 1),
        (1, 0, 1, None),
    ]
    assert {one["version"] for one in told["versions"] if one["ancestor"]} == {1, 2, 5, 6}
    assert [one["weight_version"] for one in told["commits"]] == [4, 6]


def test_lineage_as_a_tree(folder: RunFolder) -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tree(collect(folder)))
    lines = [line.strip(" │├└─") for line in captured.get().splitlines()]
    assert lines[1:] == [
        "branch 0",
        "v1 to v2  start to iteration 1",
        "branch 1, from iteration 1",
        "v5 to v6  iterations 4 to 5",
        "commit 2 at iteration 5: v6",
        "v3 to v4  iterations 2 to 3  (left behind)",
        "branch.opened branch 1 starts from iteration 1 [best]",
        "commit 1 at iteration 3: v4",
    ]


def test_a_damaged_commit_is_named(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.checkpoints / "commit-00000002.json").write_text("{")
    assert main(["lineage", str(folder.root)]) == 1
    assert "commit-00000002.json is damaged" in capsys.readouterr().err
