"""`crescendo plan`: what memory a run needs, stage by stage, what does not fit, and what to change then."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crescendo.cli.exits import Exit
from crescendo.common.config.load import load_config
from crescendo.common.errors import ConfigError, DataError
from crescendo.common.planner import Machine, Phase, Plan, make_plan, memory_limit, shape_of

GIB = 2**30


def plan(options: argparse.Namespace) -> int:
    """Prints the plan; exit code 2 when the run does not fit."""
    config = load_config(Path(options.recipe), options.set, inputs=False)
    shape = shape_of(config.model, fetch=True)
    if shape is None:
        raise DataError(
            f"model.source is {config.model.source!r}: neither a folder with a config.json nor to be had from the hub.",
            field="model.source",
            fix="Give a folder that has the model's config.json, if nothing else: --set model.source=FOLDER.",
        )
    made = make_plan(config, shape, _machine(options))
    if options.json:
        print(json.dumps(as_json(made)))
    else:
        _show(made)
    return Exit.BAD_INPUT if made.problem else Exit.DONE


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as plain data; bytes throughout."""
    return {
        "parameters": made.parameters,
        "fits": not made.problem,
        "problem": made.problem,
        "fix": made.fix,
        "layouts": made.layouts,
        "concurrency": made.concurrency,
        "phases": [
            {
                "stage": phase.stage,
                "phase": phase.name,
                "place": phase.place,
                "bytes": phase.num_bytes,
                "capacity": phase.capacity,
                "fits": phase.fits,
                "items": {item.name: item.num_bytes for item in phase.items},
            }
            for phase in made.phases
        ],
    }


def _machine(options: argparse.Namespace) -> Machine:
    for name, value in (("--gpus", options.gpus), ("--gpu-memory", options.gpu_memory)):
        if value < 0:
            raise ConfigError(f"{name} is {value:g}; it must not be negative.", field=name)
    gpu = int(options.gpu_memory * GIB) if options.gpu_memory else None
    if bool(options.gpus) is not bool(gpu):
        given, missing = ("--gpus", "--gpu-memory") if options.gpus else ("--gpu-memory", "--gpus")
        raise ConfigError(
            f"{given} is given without {missing}.", field=missing, fix="For eight H100: --gpus 8 --gpu-memory 80"
        )
    host = int(options.host_memory * GIB) if options.host_memory else None
    if host is None and not options.gpus:
        host = memory_limit()
    return Machine(options.gpus, gpu, host, options.gpus_a_machine)


def _show(made: Plan) -> None:
    console = Console(highlight=False)
    console.print(f"{made.parameters / 1e9:.3g} billion parameters; all figures in GiB")
    for stage, layout in made.layouts.items():
        console.print(Text(f"\nstage {stage}: {layout}", style="bold"))
        console.print(_table([phase for phase in made.phases if phase.stage == stage]))
        if stage in made.concurrency:
            console.print(f"  an engine holds {made.concurrency[stage]} longest sequences at once")
    if made.problem:
        console.print(Text(f"\nDoes not fit: {made.problem}", style="bold red"))
        console.print(made.fix)
    else:
        console.print("\nFits.")


def _table(phases: list[Phase]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("  phase", no_wrap=True, header_style="dim")
    for title in ("needs", "has", ""):
        table.add_column(title, justify="right", header_style="dim")
    for phase in phases:
        has = "" if phase.capacity is None else f"{phase.capacity / GIB:.2f}"
        verdict = "" if phase.fits else "over"
        table.add_row(
            f"  {phase.name}: {phase.place}",
            f"{phase.num_bytes / GIB:.2f}",
            has,
            verdict,
            style="" if phase.fits else "bold red",
        )
        for item in phase.items:
            table.add_row(f"    {item.name}", f"{item.num_bytes / GIB:.3f}", style="dim")
    return table
