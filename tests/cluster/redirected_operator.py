"""The operator with the controllers of all runs at one address, CONTROLLERS: there is no DNS of a cluster here."""

import os
import sys
from functools import partial

from crescendo.controller.operator import __main__ as operator
from crescendo.controller.operator.reconcile import Reconciler


def main() -> int:
    """Runs the operator."""
    address = os.environ["CONTROLLERS"]
    operator.Reconciler = partial(Reconciler, address_of=lambda job: address)  # type: ignore[misc,assignment]
    return operator.main()


if __name__ == "__main__":
    sys.exit(main())
