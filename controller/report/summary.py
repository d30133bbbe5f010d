"""summary.json: how a run ended, in numbers. Scripts and benches read it; its names are stable.

accuracy  {sft, final}                     validation at the last stage's context, before RL and at the end
stages    [{name, entered_iteration, left_iteration, left_by, accuracy}]   accuracy at the stage's own context
seconds   {start, sft, rollout, train, ...}   wall-clock time by phase
checks    {logprob_max_diff, ...}             the worst value of each check over the run
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crescendo.common.config.schema import Config
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.controller.loop.state import RunState
from crescendo.controller.report.plot import plot_run
from crescendo.proto.v1 import controller_pb2

SUMMARY_VERSION = 1
PLOT_NAME = "run.png"


def build_summary(
    config: Config, run_id: str, state: RunState, rows: Sequence[controller_pb2.MetricsRow]
) -> dict[str, Any]:
    """The summary as JSON values; numbers that are not known are null."""
    records: Sequence[Mapping[str, Any]] = state.stages.get("records", [])
    names = ("name", "entered_iteration", "left_iteration", "left_by", "accuracy")
    return {
        "summary_version": SUMMARY_VERSION,
        "run_id": run_id,
        "name": config.run.name,
        "seed": config.run.seed,
        "accuracy": {"sft": state.accuracy_sft, "final": state.accuracy_final},
        "stages": [{name: record.get(name) for name in names} for record in records],
        "seconds": {name: round(value, 3) for name, value in state.seconds.items()},
        "checks": dict(state.checks),
        "iterations": state.iteration,
        "branches": state.branch + 1,
        "weight_version": state.weight_version,
        "trained_tokens": int(sum(row.values.get("trained_tokens", 0.0) for row in rows)),
    }


def write_report(
    config: Config, folder: RunFolder, state: RunState, rows: Sequence[controller_pb2.MetricsRow]
) -> dict[str, Any]:
    """Writes plots/run.png, then summary.json, whose presence says that the run has finished; returns the summary."""
    summary = build_summary(config, folder.run_id(), state, rows)
    folder.plots.mkdir(parents=True, exist_ok=True)
    plot_run(config.run.name, rows, summary["stages"], folder.plots / PLOT_NAME)
    write_atomically(folder.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary
