"""Writes the CRD into the chart, or with --check says whether it is current."""

import argparse
import sys
from pathlib import Path

from crescendo.common.generated import write_or_check
from crescendo.controller.operator.crd import render

DEFAULT_TARGET = Path("helm/crescendo/files/rljob-crd.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Writes the file; with --check exits 1 when it is stale."""
    parser = argparse.ArgumentParser(description="Write the RLJob CustomResourceDefinition from the config schema.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the file is stale")
    parser.add_argument("target", nargs="?", type=Path, default=DEFAULT_TARGET)
    options = parser.parse_args(arguments)
    return write_or_check({options.target: render()}, check=options.check, command="make crd")


if __name__ == "__main__":
    sys.exit(main())
