"""The arguments of `crescendo data testcases`. Light: it is imported with the command line itself."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

Add: TypeAlias = Callable[..., argparse.ArgumentParser]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Fields of reward_service.judge.selection.SelectionRules, with its defaults (k1.5's numbers).
RULES = {
    "num_cases": (50, "inputs that the generator makes"),
    "num_references": (10, "reference solutions that are drawn for a problem"),
    "min_agree": (7, "references that must write the same for a case to be valid"),
    "min_valid": (40, "valid cases that a problem must have"),
    "min_pass": (9, "references that must pass all valid cases for a problem to be kept"),
}


def add_testcases(actions: Commands, add: Add) -> None:
    """Adds the action; add(actions, name, target, summary, *examples) makes one command."""
    command = add(
        actions,
        "testcases",
        "testcases:testcases",
        "make test cases for coding problems from their reference solutions",
        "crescendo data testcases problems.jsonl",
        "crescendo data testcases problems.jsonl --model models/qwen3-8b --engine 127.0.0.1:7000 --token-file token",
    )
    command.add_argument("file", metavar="FILE", help="JSON lines, a JSON array or Parquet")
    command.add_argument("--out", metavar="FILE", default="", help="where kept rows go (default: FILE.testcases.jsonl)")
    command.add_argument("--force", action="store_true", help="overwrite what is there")
    command.add_argument("--question", metavar="COLUMN", default="", help="default: question, problem or prompt")
    command.add_argument("--solutions", metavar="COLUMN", default="solutions", help="lists of programs")
    command.add_argument("--generator", metavar="COLUMN", default="generator", help="programs that make inputs, if any")
    command.add_argument("--special-judge", metavar="COLUMN", default="special_judge", help="true: left out")
    for name, (default, text) in RULES.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, metavar="N", type=int, default=default, help=f"{text} (default: {default})")
    command.add_argument("--case-seconds", type=float, default=10.0, help="limit of one run (default: 10)")
    command.add_argument("--memory-mib", type=int, default=512, help="limit of one run (default: 512)")
    command.add_argument("--seed", type=int, default=0, help="of cases and of drawn references (default: 0)")
    command.add_argument("--jail", default="auto", choices=("auto", "namespaces", "landlock", "runsc"),
                         help="sandbox (default: the strongest that works here)")  # fmt: skip
    command.add_argument("--model", metavar="FOLDER", default="", help="writes missing generators; Hugging Face format")
    command.add_argument("--engine", metavar="HOST:PORT", default="", help="a RolloutService with the model")
    command.add_argument("--token-file", metavar="FILE", default="", help="holds the engine's token")
    command.add_argument("--max-tokens", type=int, default=1024, help="longest generator (default: 1024)")
    command.add_argument("--plain", action="store_true", help="one line now and then in place of the progress bar")
    command.set_defaults(answer="", id="", answer_after="")
