"""`python -m crescendo.console --run-folder DIR`: the console as a process of its own, started by `crescendo run`."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from crescendo.common.errors import CrescendoError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import setup_logging
from crescendo.console.server import serve_console


def main() -> int:
    """Serves until a signal; the exit code is the error's."""
    parser = argparse.ArgumentParser(prog="python -m crescendo.console", description=__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="the run to show")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--ready-file", type=Path, required=True, help="where the one-time link is written, mode 0600")
    options = parser.parse_args()
    try:
        folder = RunFolder.open_existing(options.run_folder)
        setup_logging(folder.logs, folder.run_id(), "console", capture_output=True)
        asyncio.run(
            serve_console(folder, options.port, announce=lambda link: write_privately(options.ready_file, link))
        )
    except CrescendoError as error:
        print(f"crescendo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_privately(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(scratch, path)


if __name__ == "__main__":
    sys.exit(main())
