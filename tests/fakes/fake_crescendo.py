"""The `crescendo` command with the scripted controller: `python -m fake_crescendo run ...`."""

import sys

from crescendo.cli import run
from crescendo.cli.main import main

run.CONTROLLER_MODULE = "fake_controller"

if __name__ == "__main__":
    sys.exit(main())
