"""Generates proto/python from proto/crescendo/v1/*.proto.

Run by `make proto`; a test runs it with --check and fails when the committed stubs are stale. The stubs
import as `crescendo.proto.v1`, while the protobuf package is `crescendo.v1`: the imports that protoc
writes are therefore rewritten, and nothing else is.
"""

import argparse
import filecmp
import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).parent
TARGET = SOURCE / "python"
SCRIPTS = Path(sys.executable).parent  # of the environment, also when it is not on the PATH
IMPORT = re.compile(r"\bcrescendo\.v1\b")


def generate(into: Path) -> None:
    """Writes the stubs into a folder; raises SystemExit if protoc refuses the sources."""
    sources = sorted(str(path) for path in (SOURCE / "crescendo/v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        well_known = str(resources.files("grpc_tools") / "_proto")
        plugins = ("python", "grpc_python", "mypy", "mypy_grpc")
        outputs = [f"--{name}_out={'quiet:' if 'mypy' in name else ''}{scratch}" for name in plugins]
        found = [f"--plugin=protoc-gen-{name}={SCRIPTS / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
        code = protoc.main(["protoc", f"-I{SOURCE}", f"-I{well_known}", *found, *outputs, *sources])
        if code != 0:
            raise SystemExit(code)
        package = into / "v1"
        package.mkdir(parents=True, exist_ok=True)
        header = '"""Generated from proto/crescendo/v1 by `make proto`; do not edit."""\n'
        (into / "__init__.py").write_text(header)
        (package / "__init__.py").write_text(header)
        for made in sorted((Path(scratch) / "crescendo/v1").iterdir()):
            (package / made.name).write_text(rewrite(made.read_text()))


def rewrite(text: str) -> str:
    """Points imports at crescendo.proto.v1; service and message names keep their package."""
    lines = []
    for line in text.splitlines(keepends=True):
        is_import = re.match(r"\s*(from|import)\s", line) is not None
        is_annotation = "_pb2." in line and "DESCRIPTOR" not in line and "'/crescendo.v1" not in line
        lines.append(IMPORT.sub("crescendo.proto.v1", line) if is_import or is_annotation else line)
    return "".join(lines)


def stale_files() -> list[str]:
    """Names of committed stubs that differ from what would be generated now."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        wanted = {path.relative_to(scratch) for path in Path(scratch).rglob("*.py*") if path.is_file()}
        found = {path.relative_to(TARGET) for path in TARGET.rglob("*.py*") if path.suffix in (".py", ".pyi")}
        different = [
            name for name in wanted & found if not filecmp.cmp(Path(scratch) / name, TARGET / name, shallow=False)
        ]
        return sorted(str(name) for name in [*different, *(wanted ^ found)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell which stubs are stale")
    if parser.parse_args().check:
        stale = stale_files()
        if stale:
            sys.exit("stale stubs, run `make proto`: " + ", ".join(stale))
    else:
        generate(TARGET)
