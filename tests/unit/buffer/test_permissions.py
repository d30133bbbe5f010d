"""The login that a run needs."""

import re
from pathlib import Path

from crescendo.buffer.permissions import acl_rule, commands

ROOT = Path(__file__).parents[3]


def test_it_names_each_command_once_and_no_category() -> None:
    allowed = [word for word in acl_rule().split() if word.startswith("+")]
    assert [word.removeprefix("+") for word in allowed] == list(commands())
    assert len(set(allowed)) == len(allowed)
    assert "-@all" in acl_rule()
    assert not [word for word in allowed if "@" in word]


def test_it_can_be_for_one_run() -> None:
    assert "~{crescendo:*" in acl_rule()
    assert "~{crescendo:quickstart-1a2b}:*" in acl_rule("user", "quickstart-1a2b")


def test_nothing_ever_flushes_a_database_or_lists_all_keys() -> None:
    forbidden = re.compile(r"""(?i:flushdb|flushall)|["']KEYS[ "']|redis\.keys\(""")
    files = [*(ROOT / "buffer").rglob("*.py"), *(ROOT / "buffer").rglob("*.lua"), *(ROOT / "cli").glob("*.py")]
    assert files
    found = {file.name: forbidden.findall(file.read_text()) for file in files}
    assert not {name: hits for name, hits in found.items() if hits}
    assert not {"flushdb", "flushall", "keys", "config", "eval"} & set(commands())
