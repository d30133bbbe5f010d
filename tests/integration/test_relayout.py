"""Stages with layouts of their own, and trainer and engines apart: the real engines and a real gang, in real runs."""

import asyncio
import json
from pathlib import Path

import pytest

from crescendo.common import failpoints
from crescendo.common.errors import TEMPORARY
from crescendo.common.runfolder import RunFolder
from crescendo.controller.chaos import audit, gather
from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

HEADS = ("model.scratch.num_heads=2", "model.scratch.num_kv_heads=2")
SHORT = (
    "steps.0.sft.steps=4",
    "steps.1.rl.validation.num_prompts=2",
    *(f"steps.1.rl.stages.{n}.max_iterations={1 + (n == 0)}" for n in range(3)),
    *(f"steps.1.rl.stages.{n}.gate.iterations=1" for n in range(3)),
)


def test_a_run_changes_its_layout_between_stages_though_it_dies_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"
    monkeypatch.setenv(failpoints.VARIABLE, f"layout.ended:1:{marker}")
    tensor_parallel = [f"steps.1.rl.stages.{n}.layout.tensor_parallel=2" for n in (1, 2)]
    run = RunProcess.start(tmp_path, "grows", *HEADS, *SHORT, *tensor_parallel, "steps.1.rl.stages.0.token_budget=12")
    assert run.wait(200) == TEMPORARY, run.text
    assert marker.exists()
    assert "stage context-32 runs" not in run.text
    run = RunProcess.resume(run.folder)
    assert run.wait(200) == 0, run.text

    assert run.text.count("runs on trainer TP2, 1 engine TP1") == 1
    done = sorted(set(run.iterations()))
    assert done == list(range(1, len(done) + 1))
    assert any(row.get("num_parked") for row in run.rows("metrics.jsonl") if row["stage"] == "context-32")
    assert audit(asyncio.run(gather(RunFolder(run.folder)))) == []
    assert json.loads((run.folder / "summary.json").read_text())["checks"]["logprob_max_diff"] <= 1e-3
    assert not run.events("run.recovering")
    served = [(row["version"], row["digest"]) for row in run.rows("attestations.jsonl")]
    # What the gang of one rank trained last, the gang of two published again: the same bytes under the same number.
    digests = {version: {digest for number, digest in served if number == version} for version, _ in served}
    twice = {version for version, _ in served if [number for number, _ in served].count(version) > 1}
    assert twice
    assert all(len(digests[version]) == 1 for version in twice)
    assert run.left_behind() == []
    assert run.shared_memory() == []


def test_trainer_and_engines_with_devices_of_their_own_train_to_the_end(tmp_path: Path) -> None:
    apart = ("placement.name=disaggregated", "trainer.weight_channel=tcp", "rollout.num_engines=2")
    run = RunProcess.start(tmp_path, "apart", *SHORT, *apart)
    assert run.wait(200) == 0, run.text
    assert json.loads((run.folder / "summary.json").read_text())["checks"]["logprob_max_diff"] <= 1e-3
    assert {row["stage"] for row in run.rows("metrics.jsonl")} >= {"context-32", "context-64", "context-96"}
    assert {row["worker_id"] for row in run.rows("attestations.jsonl")} == {"rollout-0.0", "rollout-1.0"}
    assert audit(asyncio.run(gather(RunFolder(run.folder)))) == []
    assert not run.events("lease.unproven")
    assert not run.events("run.recovering")
    assert run.left_behind() == []
    assert run.shared_memory() == []
