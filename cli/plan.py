"""`crescendo plan`: what memory a run needs, stage by stage, and what does not fit. Also the check before a run."""

import argparse
import json
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from crescendo.cli.exits import Exit
from crescendo.common.config import Config
from crescendo.common.config.load import load_config
from crescendo.common.errors import ConfigError, DataError
from crescendo.common.planner import Machine, Phase, Plan, make_plan, shape_of

GIB = 2**30


def plan(options: argparse.Namespace) -> int:
    """Prints the plan; exit code 2 when the run does not fit."""
    config = load_config(Path(options.recipe), options.set)
    shape = shape_of(config.model)
    if shape is None:
        raise DataError(
            f"model.source is {config.model.source!r}, and there is no {config.model.source}/config.json here.",
            field="model.source",
            fix="Download the model, at least its config.json, and plan with --set model.source=FOLDER.",
        )
    made = make_plan(config, shape, _machine(options))
    if options.json:
        print(json.dumps(as_json(made)))
    else:
        _show(made)
    return Exit.BAD_INPUT if made.problem else Exit.DONE


def refuse_early(config: Config, machine: Machine) -> None:
    """Raises ConfigError when a run cannot fit; says nothing about models whose shape is not known here."""
    shape = shape_of(config.model)
    problem = make_plan(config, shape, machine).problem if shape is not None else ""
    if problem:
        raise ConfigError(
            f"the run does not fit this machine: {problem}", field="steps", fix="See all of it: crescendo plan RECIPE."
        )


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as plain data; bytes throughout."""
    return {
        "parameters": made.parameters,
        "fits": not made.problem,
        "problem": made.problem,
        "concurrency": made.concurrency,
        "phases": [
            {
                "stage": phase.stage,
                "phase": phase.name,
                "place": phase.place,
                "bytes": phase.num_bytes,
                "capacity": phase.capacity,
                "items": {item.name: item.num_bytes for item in phase.items},
            }
            for phase in made.phases
        ],
    }


def _machine(options: argparse.Namespace) -> Machine:
    gpu = int(options.gpu_memory * GIB) if options.gpu_memory else None
    if options.gpus and gpu is None:
        raise ConfigError(
            "--gpus is given without --gpu-memory.", field="--gpu-memory", fix="Add, for an H100: --gpu-memory 80"
        )
    host = int(options.host_memory * GIB) if options.host_memory else None
    if host is None and not options.gpus:
        host = psutil.virtual_memory().total
    return Machine(options.gpus, gpu, host)


def _show(made: Plan) -> None:
    console = Console(highlight=False)
    console.print(f"{made.parameters / 1e9:.3g} billion parameters")
    for phase in made.phases:
        console.print(_table(phase))
    for stage, count in made.concurrency.items():
        console.print(f"stage {stage}: an engine holds {count} longest sequences at once")
    console.print(
        f"Does not fit: {made.problem}" if made.problem else "Fits.", style="bold red" if made.problem else ""
    )


def _table(phase: Phase) -> Table:
    table = Table.grid(padding=(0, 2))
    capacity = "" if phase.capacity is None else f" of {phase.capacity / GIB:.2f}"
    table.add_row(f"{phase.stage}, {phase.name}, {phase.place}", f"{phase.num_bytes / GIB:.2f}{capacity} GiB")
    for item in phase.items:
        table.add_row(f"  {item.name}", f"{item.num_bytes / GIB:.3f}")
    return table
