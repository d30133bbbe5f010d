"""`crescendo console`: serves the web page of a run, living or finished, until Ctrl-C."""

import argparse
import asyncio

from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.console import serve_console


def console(options: argparse.Namespace) -> int:
    """Prints the one-time link and serves."""
    folder = find_run(options.run)
    asyncio.run(
        serve_console(folder, options.port, announce=lambda link: print(f"{link}\nCtrl-C ends it.", flush=True))
    )
    return Exit.DONE
