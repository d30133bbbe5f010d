"""`crescendo chaos`: runs a recipe under random faults, then audits it from outside."""

import argparse
import asyncio
import json
import shlex
import signal
import sys
import time
from pathlib import Path

from crescendo.cli.exits import Exit
from crescendo.cli.processes import adopt_orphans
from crescendo.common.config import load_config
from crescendo.common.errors import ConfigError, RequestError
from crescendo.controller.chaos import Campaign, table, verdict, write_table


def chaos(options: argparse.Namespace) -> int:
    """Runs a campaign; the exit code is 1 when a promise was broken or a run did not finish."""
    if options.faults < 1:
        raise RequestError(f"--faults is {options.faults}; it must be at least 1.", field="faults")
    if options.write and not Path(options.write).is_file():
        raise RequestError(f"--write {options.write}: there is no such file.", field="write")
    config = load_config(Path(options.recipe), options.set)  # a bad recipe is told before anything starts
    runs = Path(config.run.folder)
    runs.mkdir(parents=True, exist_ok=True)
    first = runs / f"{config.run.name}-{options.seed}-0"
    if first.exists():
        raise ConfigError(
            f"{first} is there already, from an earlier campaign.",
            field="run.name",
            fix="Remove it, or choose another seed, --set run.name=... or --set run.folder=...",
        )
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: with every process of the run

    def command(folder: Path | None, name: str) -> list[str]:
        program = [sys.executable, "-m", "crescendo.cli.main"]
        if folder is not None:
            return [*program, "resume", str(folder), "--plain", "--no-console"]
        settings = [word for override in options.set for word in ("--set", override)]
        return [*program, "run", options.recipe, *settings, "--name", name, "--plain", "--no-console"]

    campaign = Campaign(
        command, runs, config.run.name, options.seed, options.faults,
        say=lambda text: print(text, file=sys.stderr, flush=True), run_limit_s=options.run_limit_s,
        within_s=options.within_s, spared=options.spare,
    )  # fmt: skip
    begun = time.monotonic()
    records = asyncio.run(campaign.run())
    print(table(records))
    result = verdict(records, options.faults, time.monotonic() - begun)
    if options.write:
        write_table(Path(options.write), shlex.join(["crescendo", *sys.argv[1:]]), table(records))
    print(json.dumps(result))
    return Exit.DONE if result["held"] else Exit.FAILED
