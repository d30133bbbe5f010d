"""What ruff cannot say: sizes, left-over markers, paths of one machine."""

import ast
import re

import pytest

from tests.unit.repo.tree import python_files, text_of, tracked_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
MACHINE_PATH = re.compile(r"(^|[^a-zA-Z0-9._-])/(work|root|farm|home|Users)/[a-zA-Z.]", re.MULTILINE)
SCRATCH_PATH = re.compile(r"[\"'(= ]/tmp/")
NOT_OURS = ("requirements/", "LICENSE", "proto/python/")
# Programs that run in a sandbox: the paths that they try are the sandbox's.
INSIDE_A_SANDBOX = "tests/attacks/cases/"


def our_files() -> list[str]:
    """Tracked files that people write."""
    return [name for name in tracked_files() if not name.startswith(NOT_OURS)]


def test_files_are_short() -> None:
    long = {name: lines for name in python_files() if (lines := len(text_of(name).splitlines())) > MAX_FILE_LINES}
    assert long == {}


def test_functions_are_short() -> None:
    long: dict[str, int] = {}
    for name in python_files():
        for node in ast.walk(ast.parse(text_of(name))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = lines
    assert long == {}


def test_modules_say_what_they_are() -> None:
    silent = [
        name for name in python_files() if (tree := ast.parse(text_of(name))).body and ast.get_docstring(tree) is None
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [("left-over markers", MARKERS), ("paths of one machine", MACHINE_PATH), ("fixed scratch paths", SCRATCH_PATH)],
)
def test_no_trace_of_work_in_progress(what: str, pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}: {match.group(0).strip()}"
        for name in our_files()
        for match in pattern.finditer(text_of(name))
        if not name.endswith("tests/unit/repo/test_style.py") and not name.startswith(INSIDE_A_SANDBOX)
    ]
    assert found == [], what
