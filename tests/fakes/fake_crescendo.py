"""The `crescendo` command with the scripted controller: `python -m fake_crescendo run ...`."""

import os
import sys

from crescendo.cli import run
from crescendo.cli.main import main

run.CONTROLLER_MODULE = "fake_controller"
run.KILL_GRACE_S = float(os.environ.get("CRESCENDO_FAKE_KILL_GRACE_S", "5"))
run.ORPHAN_GRACE_S = 0.3

if __name__ == "__main__":
    sys.exit(main())
