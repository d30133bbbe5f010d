"""The attack suite's data: one file a case in cases/, and the jails that they are run in.

A case is a program that tries something, and what is expected, for all jails or for one: `[expect]`,
`[expect.landlock]` and so on. A program prints `held` where it was refused and `BROKEN name`
where it was not (prelude.py).
"""

import functools
import json
import os
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crescendo.reward_service.sandbox.protocol import Limits, Outcome, Program
from crescendo.reward_service.sandbox.zygote_process import own_interpreter

CASES = Path(__file__).parent / "cases"
PRELUDE = (Path(__file__).parent / "prelude.py").read_bytes()
SYSTEM_INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3")

# Jail under test: what it is called in expectations and in the table, most specific first.
JAILS = {
    "namespaces-warm": ("namespaces",),
    "namespaces-cold": ("namespaces",),
    "bubblewrap": ("bubblewrap", "namespaces"),
    "landlock-warm": ("landlock",),
    "landlock-cold": ("landlock",),
    "runsc": ("runsc",),
}


@dataclass(frozen=True)
class Expectation:
    """What must be seen. code: exit status, or `any`; says: must be in standard output; stdout: all of it, if given;
    tolerates: what this jail is known to let pass, by the name after BROKEN; note: what the table says of that."""

    ending: tuple[str, ...] = ("exited",)
    code: int | str = 0
    says: str = "held"
    stdout: str | None = None
    tolerates: tuple[str, ...] = ()
    note: str = "not stopped¹"

    def broken_by(self, outcome: Outcome) -> list[str]:
        """Everything that is not as expected."""
        problems = []
        text = outcome.stdout.decode(errors="replace")
        if outcome.ending not in self.ending:
            problems.append(f"it ended as {outcome.ending} ({outcome.reason}), not as {' or '.join(self.ending)}")
        if self.code != "any" and outcome.code != self.code:
            problems.append(f"its code is {outcome.code}, not {self.code}")
        if self.says not in text:
            problems.append(f"it did not say {self.says!r}")
        if self.stdout is not None and text != self.stdout:
            problems.append(f"it said {text!r}, not {self.stdout!r}")
        for line in text.splitlines():
            if line.startswith("BROKEN") and line.split()[1:2] != [] and line.split()[1] in self.tolerates:
                continue
            if line.startswith("BROKEN"):
                problems.append(line)
        return problems


@dataclass(frozen=True)
class Case:
    """One attack. differs: two runs must not say the same."""

    name: str
    title: str
    text: str
    limits: Limits
    expectations: Mapping[str, Expectation] = field(default_factory=dict)
    differs: bool = False

    @property
    def group(self) -> str:
        """limits, reads, writes, network, cross_run, kernel or hacking."""
        return "cross_run" if self.name.startswith("cross_run") else self.name.partition("_")[0]

    def expected_of(self, jail: str) -> Expectation:
        """Of a jail in JAILS."""
        return next(self.expectations[name] for name in (*JAILS[jail], "all") if name in self.expectations)

    def tolerated_by(self, jail: str) -> bool:
        """Whether this jail is expected to let something pass that the others stop."""
        expected = self.expected_of(jail)
        return bool(expected.tolerates) and expected != self.expectations["all"]

    def program(self, values: Mapping[str, str]) -> Program:
        """values: what stands for @NAME@ in the text."""
        text = self.text
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        return Program("python", {"main.py": text.encode(), "attack.py": PRELUDE}, limits=self.limits)


@functools.cache
def load_cases() -> tuple[Case, ...]:
    """All cases, by name."""
    return tuple(_case(path) for path in sorted(CASES.glob("*.toml")))


def _case(path: Path) -> Case:
    data = tomllib.loads(path.read_text())
    expect = data.get("expect", {})
    common = {name: value for name, value in expect.items() if not isinstance(value, dict)}
    expectations = {"all": _expectation(common)}
    for jail, special in expect.items():
        if isinstance(special, dict):
            expectations[jail] = _expectation(common | special)
    limits = Limits(**({"wall_s": 10.0, "cpu_s": 10.0} | data.get("limits", {})))
    return Case(path.stem, data["title"], data["program"], limits, expectations, data.get("differs", False))


def _expectation(data: dict[str, Any]) -> Expectation:
    lists = {name: tuple(data[name]) for name in ("ending", "tolerates") if name in data}
    return Expectation(**(data | lists))


@functools.cache
def readable_interpreter() -> str:
    """An interpreter whose library an unprivileged user can read: ours, else the system's; empty if there is none.

    Only root's sandboxes need to ask: a candidate of root's runs as another user.
    """
    own = own_interpreter()
    if os.geteuid() != 0:
        return own
    for path in (own, *SYSTEM_INTERPRETERS):
        if Path(path).exists() and _is_readable(path):
            return path
    return ""


def _is_readable(interpreter: str) -> bool:
    script = "import os, sys, json; print(json.dumps([os.path.dirname(os.__file__), list(sys.version_info[:2])]))"
    found = subprocess.run([interpreter, "-I", "-S", "-c", script], capture_output=True, check=False, timeout=20)
    if found.returncode:
        return False
    library, version = json.loads(found.stdout)
    folders = [Path(library), *Path(library).parents]
    return version >= [3, 11] and all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders)


def source_folder() -> str:
    """Where the service's own sources lie."""
    import crescendo

    return str(Path(crescendo.__file__).parent)
