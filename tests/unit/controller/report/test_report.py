"""summary.json keeps its names; plot and table show what a run did, also an odd one."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config, RunConfig
from crescendo.common.runfolder import RunFolder
from crescendo.controller.loop.state import RunState
from crescendo.controller.report import build_summary, plot_run, render_summary, write_report
from crescendo.controller.stages import IterationFacts, StageScheduler
from crescendo.proto.v1 import controller_pb2


def row(stage: str, iteration: int, **values: float) -> controller_pb2.MetricsRow:
    return controller_pb2.MetricsRow(stage=stage, values={"iteration": float(iteration), **values})


def finished_run() -> tuple[RunState, list[controller_pb2.MetricsRow]]:
    """Two stages of three iterations, validated at their last."""
    plan = [StageConfig(name=name) for name in ("short", "long")]
    for stage in plan:
        stage.gate.name, stage.gate.iterations = "step", 3
    scheduler = StageScheduler(plan, first_iteration=1)
    rows = [row("start", 0, validation_accuracy=0.1, length=12.0)]
    for iteration in range(1, 7):
        stage = scheduler.stage.name
        values = {"reward": 0.1 * iteration, "length": 10.0 * iteration, "clip_ratio": 0.3, "trained_tokens": 1000.0}
        accuracy = 0.1 * iteration if iteration % 3 == 0 else None
        if accuracy is not None:
            values["validation_accuracy"] = accuracy
        rows.append(row(stage, iteration, **values))
        transition = scheduler.observe(IterationFacts(iteration, values["reward"], 10.0, 0.3, accuracy))
        if transition is not None:
            scheduler.apply(transition, iteration + 1)
    rows.append(row("end", 6, validation_accuracy=0.9))
    state = RunState(
        iteration=6, branch=1, weight_version=9, accuracy_sft=0.1, accuracy_final=0.9, stages=scheduler.to_dict(),
        checks={"logprob_max_diff": 4.7e-6}, seconds={"start": 26.21, "sft": 70.0, "rollout": 61.25},
    )  # fmt: skip
    return state, rows


def printed(summary: dict[str, Any]) -> str:
    """The table as plain text."""
    console = Console(width=100, file=StringIO())
    console.print(render_summary(summary))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_summary_has_the_promised_names() -> None:
    state, rows = finished_run()
    summary = build_summary(Config(run=RunConfig(name="demo", seed=4)), "demo-1", state, rows)
    assert summary["accuracy"] == {"sft": 0.1, "final": 0.9}
    assert summary["stages"] == [
        {"name": name, "entered_iteration": entered, "left_iteration": left, "left_by": "step", "accuracy": accuracy}
        for name, entered, left, accuracy in (("short", 1, 3, pytest.approx(0.3)), ("long", 4, 6, pytest.approx(0.6)))
    ]
    assert summary["seconds"] == {"start": 26.21, "sft": 70.0, "rollout": 61.25}
    assert summary["checks"] == {"logprob_max_diff": 4.7e-6}
    assert (summary["iterations"], summary["branches"], summary["trained_tokens"]) == (6, 2, 6000)
    assert (summary["run_id"], summary["seed"]) == ("demo-1", 4)


def test_the_report_is_written_with_the_summary_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "demo", "demo")
    state, rows = finished_run()
    config = Config(run=RunConfig(name="demo"))
    summary = write_report(config, folder, state, rows)
    assert json.loads(folder.summary.read_text()) == summary
    picture = imread(folder.plots / "run.png")
    assert picture.shape[0] > 800
    assert float(np.ptp(picture)) > 0.5
    folder.summary.unlink()
    monkeypatch.setattr("crescendo.controller.report.summary.plot_run", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(config, folder, state, rows)
    assert not folder.summary.exists()


def fail(*_: Any) -> None:
    raise OSError("disk full")


def test_the_table_shows_stages_gain_time_and_checks() -> None:
    state, rows = finished_run()
    summary = build_summary(Config(run=RunConfig(name="demo")), "demo-1", state, rows)
    text = printed(summary)
    for expected in (
        "10.0% before RL",
        "90.0% after (+80 points)",
        "short",
        "1 to 3",
        "step",
        "rollout 61 s",
        "4.7e-06",
    ):
        assert expected in text


def test_a_run_that_was_stopped_early_still_has_table_and_plot(tmp_path: Path) -> None:
    plan = [StageConfig(name="short"), StageConfig(name="long")]
    state = RunState(stages=StageScheduler(plan, first_iteration=1).to_dict())
    summary = build_summary(Config(run=RunConfig(name="demo")), "demo-1", state, [])
    assert summary["accuracy"] == {"sft": None, "final": None}
    text = printed(summary)
    assert "not entered" in text
    assert "from 1" in text
    plot_run("demo", [], summary["stages"], tmp_path / "empty.png")
    plot_run("demo", [row("short", 1, reward=-0.5)], [], tmp_path / "one.png")
    assert imread(tmp_path / "empty.png").shape == imread(tmp_path / "one.png").shape
