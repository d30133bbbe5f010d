"""The operator with the controllers of all runs at one address, CONTROLLERS: there is no DNS of a cluster here."""

import os
import sys

from crescendo.controller.operator import __main__ as operator
from crescendo.controller.operator import reconcile


def main() -> int:
    """Runs the operator."""
    address = os.environ["CONTROLLERS"]
    reconcile.controller_address = lambda job: address
    return operator.main()


if __name__ == "__main__":
    sys.exit(main())
