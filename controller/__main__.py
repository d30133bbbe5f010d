"""`python -m crescendo.controller --run-folder DIR`: the controller process of a prepared run folder."""

import argparse
import asyncio
import ctypes
import signal
import sys
from pathlib import Path

from crescendo.common.errors import CrescendoError
from crescendo.controller.app import run_controller

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Runs the folder; the exit code is the run's."""
    parser = argparse.ArgumentParser(prog="python -m crescendo.controller", description=__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="a folder that `crescendo run` prepared")
    parser.add_argument("--die-with-parent", action="store_true", help="SIGTERM when the starting process ends")
    parser.add_argument("--take-over", action="store_true", help="also when another controller has the folder")
    arguments = parser.parse_args()
    if arguments.die_with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        return asyncio.run(run_controller(arguments.run_folder, take_over=arguments.take_over))
    except CrescendoError as error:
        print(f"crescendo: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
