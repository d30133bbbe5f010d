"""The cluster's console with the controllers of all runs at one address, CONTROLLERS: there is no cluster DNS here."""

import os
import sys
from functools import partial

from crescendo.console.cluster import __main__ as console
from crescendo.console.cluster import app
from crescendo.console.cluster.runs import ControllerRuns


def main() -> int:
    """Runs the console."""
    address = os.environ["CONTROLLERS"]
    app.ControllerRuns = partial(ControllerRuns, lambda job: address)  # type: ignore[misc,assignment]
    return console.main()


if __name__ == "__main__":
    sys.exit(main())
