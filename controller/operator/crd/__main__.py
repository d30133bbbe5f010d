"""Writes the CRD into the chart, or with --check says whether it is current."""

import argparse
import sys
from pathlib import Path

from crescendo.controller.operator.crd import render

DEFAULT_TARGET = Path("helm/crescendo/files/rljob-crd.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Writes the file; with --check exits 1 when it is stale."""
    parser = argparse.ArgumentParser(description="Write the RLJob CustomResourceDefinition from the config schema.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the file is stale")
    parser.add_argument("target", nargs="?", type=Path, default=DEFAULT_TARGET)
    options = parser.parse_args(arguments)
    text = render()
    if options.check:
        current = options.target.read_text(encoding="utf-8") if options.target.exists() else ""
        if current != text:
            print(f"{options.target} is stale: run make crd", file=sys.stderr)
            return 1
        return 0
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
