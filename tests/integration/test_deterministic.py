"""run.deterministic on the real engines: a run killed and resumed ends with the very bits of one that was not."""

import hashlib
from pathlib import Path

import pytest

from crescendo.common import failpoints
from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ORDERED = (
    "run.deterministic=true",
    "placement.device=cpu",
    "rollout.threads=2",
    "trainer.threads=2",
    "steps.0.sft.steps=10",
    "steps.1.rl.validation.num_prompts=4",
    "steps.1.rl.checkpoints.every_iterations=4",
    "steps.1.rl.stages.2.gate.iterations=1",
)


def weights_of(run: RunProcess) -> str:
    return hashlib.sha256((run.folder / "export" / "model.safetensors").read_bytes()).hexdigest()


def killed(run: RunProcess, marker: Path) -> None:
    assert run.wait() == 75, run.text
    assert marker.exists(), "the controller died somewhere else"


def test_a_run_killed_at_a_commit_and_in_an_iteration_ends_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunProcess.start(tmp_path, "whole", *ORDERED)
    assert whole.wait() == 0, whole.text

    at_commit, in_iteration = tmp_path / "at-commit", tmp_path / "in-iteration"
    monkeypatch.setenv(failpoints.VARIABLE, f"commit.rolled:2:{at_commit}")
    run = RunProcess.start(tmp_path, "killed", *ORDERED)
    killed(run, at_commit)
    monkeypatch.setenv(failpoints.VARIABLE, f"rollout.parked:2:{in_iteration}")
    run = RunProcess.resume(run.folder)
    killed(run, in_iteration)
    monkeypatch.delenv(failpoints.VARIABLE)
    run = RunProcess.resume(run.folder)
    assert run.wait() == 0, run.text

    assert run.events("batch.retrained")
    (rewound,) = run.events("iteration.rewound")
    assert int(rewound["facts"]["tokens"]) > 100
    assert weights_of(run) == weights_of(whole)
    told = ("iteration", "reward", "length", "validation_accuracy")
    rows = {
        row["iteration"]: {key: row.get(key) for key in told} for row in whole.rows("metrics.jsonl") if "branch" in row
    }
    again = {
        row["iteration"]: {key: row.get(key) for key in told} for row in run.rows("metrics.jsonl") if "branch" in row
    }
    assert again == rows
