"""Pins are exact, hashed and name no registry."""

import re

import pytest

from tests.unit.repo.tree import ROOT

PINS = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
PINNED = re.compile(r"^[A-Za-z0-9._-]+(\[[a-z0-9_,-]+\])?==[^\s;]+( ; [^\\]+)?$")
HASH = re.compile(r"^--hash=sha256:[0-9a-f]{64}$")


def entries(name: str) -> list[list[str]]:
    """A file's requirements, each with its hashes, continuation lines joined."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("--hash"):
            found[-1].append(line)
        else:
            found.append([line])
    return found


@pytest.mark.parametrize("name", PINS)
def test_every_requirement_is_exact_and_hashed(name: str) -> None:
    assert entries(name), "no requirement found"
    for requirement, *hashes in entries(name):
        assert PINNED.match(requirement), requirement
        assert hashes, f"{requirement} has no hash"
        assert all(HASH.match(line) for line in hashes), requirement


@pytest.mark.parametrize("name", PINS)
def test_no_registry_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert not re.search(r"://|^\s*(-i|-f|--(extra-)?index-url|--find-links)\b| @ ", text, re.MULTILINE)


def test_both_pythons_have_each_environment() -> None:
    for kind in ("cpu", "gpu", "bench-trl"):
        assert {f"{kind}-py311.txt", f"{kind}-py312.txt"} <= set(PINS)
