"""`crescendo config show|check|docs`."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from crescendo.cli.exits import Exit
from crescendo.common.config import docs as config_docs
from crescendo.common.config import load_config, to_yaml


def show(options: argparse.Namespace) -> int:
    """Prints every field of a run file as the run would see it."""
    text = to_yaml(load_config(Path(options.recipe), options.set))
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")
    return Exit.DONE


def check(options: argparse.Namespace) -> int:
    """Checks a run file; errors name field, value, rule and fix."""
    config = load_config(Path(options.recipe), options.set)
    steps = ", ".join(step.kind for step in config.steps)
    print(f"{options.recipe} is good: run {config.run.name}, steps {steps}.")
    return Exit.DONE


def docs(options: argparse.Namespace) -> int:
    """Prints the schema's documentation as Markdown."""
    print(config_docs.render(), end="")
    return Exit.DONE
