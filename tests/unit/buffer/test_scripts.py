"""The scripts as text: headers, fences, and what they must never call."""

import re
from pathlib import Path

import pytest

from crescendo.buffer.scripts import script, script_names
from crescendo.common.types import group_id, trajectory_id

READS = {"read", "load_trajectories", "load_groups"}
ISSUES_FENCES = {"acquire_epoch", "advance_fence", "acquire_archiver"}
OF_THE_ARCHIVER = {"trim_archived"}
FORBIDDEN = ("KEYS", "FLUSHDB", "FLUSHALL", "SCAN", "RANDOMKEY", "EVAL")

SOURCES = {
    path.stem: path.read_text()
    for path in (Path(__file__).parents[3] / "buffer" / "scripts").glob("*.lua")
    if not path.stem.startswith("prelude")
}


def code_of(name: str) -> str:
    return "\n".join(line for line in SOURCES[name].splitlines() if not line.startswith(("--", "#!")))


def test_the_loader_finds_every_script() -> None:
    assert script_names() == sorted(SOURCES)
    assert len({script(name).sha for name in script_names()}) == len(SOURCES)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_script_starts_with_flags_then_its_key_schema(name: str) -> None:
    lines = SOURCES[name].splitlines()
    assert lines[0].startswith("#!lua")
    header = "\n".join(line for line in lines[1:] if line.startswith("--"))
    for section in ("Arguments", "Reads", "Returns"):
        assert re.search(rf"^--\s+{section}\b|^-- {section}", header, re.MULTILINE), section
    assert script(name).text.startswith(lines[0] + "\n"), "the server reads the flags from the first line"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - READS - ISSUES_FENCES - OF_THE_ARCHIVER))
def test_a_script_checks_the_fence_before_anything_else(name: str) -> None:
    assert code_of(name).lstrip().startswith("local stale = check_fence()\nif stale then\n  return stale\nend")


def test_the_archivers_token_is_checked_before_anything_else() -> None:
    code = code_of("trim_archived")
    assert code.index("~= newest") < min(code.index(f"'{command}'") for command in ("UNLINK", "ZREM"))


def test_the_fence_itself_advances_only_under_a_valid_one() -> None:
    code = code_of("advance_fence")
    assert code.index("check_fence()") < code.index("HINCRBY")


@pytest.mark.parametrize("name", sorted(READS))
def test_reading_scripts_cannot_write(name: str) -> None:
    assert SOURCES[name].splitlines()[0] == "#!lua flags=no-writes"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_script_looks_at_other_keys_or_flushes(name: str) -> None:
    called = set(re.findall(r"call\(\s*'([A-Z]+)'", script(name).text))
    assert called.isdisjoint(FORBIDDEN)
    assert "TIME" not in called, "leases run on the controller's clock"


def test_scripts_that_free_memory_run_when_it_is_short() -> None:
    growing = {"open_groups", "claim", "flush"} | READS
    for name in SOURCES:
        assert ("allow-oom" in SOURCES[name].splitlines()[0]) is (name not in growing), name


def test_member_ids_are_those_of_common_types() -> None:
    formatted = re.search(r"string\.format\('([^']+)', group, sample\)", script("claim").text)
    assert formatted is not None
    group = group_id(3, 14, 15)
    for sample in (0, 9, 265, 1000):
        assert formatted.group(1) % (group, sample) == trajectory_id(group, sample)
