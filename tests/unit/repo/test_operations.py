"""docs/operations.md: each command names the test that runs it, or says that none does."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs/operations.md"
COMMAND = re.compile(r"(?:`|^)((?:kubectl|helm|crescendo|make) [^`\n]+)", re.MULTILINE)
TEST = re.compile(r"tests/[\w/]+(?:\.py)?")
UNMARKED = "not run here"


def blocks(text: str) -> Iterator[str]:
    """Rows of tables one by one, and paragraphs; a fenced block belongs to the paragraph before it."""
    for paragraph in re.split(r"\n\n(?!```)", text):
        if paragraph.startswith("|"):
            yield from paragraph.splitlines()
        else:
            yield paragraph


def commands() -> list[tuple[str, str]]:
    """(command, the block that it stands in, on one line)."""
    found = [(command, block) for block in blocks(DOCUMENT.read_text()) for command in COMMAND.findall(block)]
    return [(command, " ".join(block.split())) for command, block in found]


def verb(command: str) -> str:
    """The first word that is neither the program, nor an option, nor an option's value."""
    words = re.sub(r"\s-n \S+", "", command).split()[1:]
    return next(word for word in words if not word.startswith("-")).split("=")[0]


def runs(path: Path, word: str) -> bool:
    """Whether a test, or one of a folder's, has this word as a command has it."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    said = re.compile(rf'["\'. ]{re.escape(word)}\b')
    return any(said.search(file.read_text()) for file in files)


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("command", "block"), commands(), ids=lambda value: value if len(value) < 60 else "")
def test_a_command_is_run_by_a_test_or_marked(command: str, block: str) -> None:
    named = [ROOT / name for name in TEST.findall(block)]
    assert named or UNMARKED in block, f"`{command}` names no test and is not marked as {UNMARKED!r}"
    assert all(path.exists() for path in named), f"`{command}` names a test that does not exist: {named}"
    if UNMARKED not in block:
        assert any(runs(path, verb(command)) for path in named), f"no test that `{command}` names has {verb(command)!r}"
