"""Attacks on judging: what a case is, and the three kinds of test that each is put to.

A case (judge_cases/, one file each) is a program that tries to be judged correct without solving anything. Its tests
expect tokens drawn anew for every run, so only a judge that was talked to can pass it; and the run is watched, so a
token that reached the candidate's sandbox is found even if the candidate made nothing of it.
"""

import functools
import json
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path

from crescendo.reward_service.judge.bundle import bundled
from crescendo.reward_service.judge.functional import Budget
from crescendo.reward_service.judge.steps import Rules
from crescendo.reward_service.sandbox.protocol import MIB, Outcome, Posture, Program, Sandbox

CASES = Path(__file__).parent / "judge_cases"
NUM_CALLS = 3
# Long enough for a busy machine; a case that is expected to spend its time gets less of it.
RULES = Rules(Budget(case_s=5.0, total_s=20.0, memory_bytes=256 * MIB))
SHORT_RULES = Rules(Budget(case_s=0.3, total_s=0.6, memory_bytes=256 * MIB))
HONEST = """class Solution:
    def solve(self, n):
        return sorted(n)

if __name__ == "__main__":
    print(input()[::-1])
"""


@dataclass(frozen=True)
class JudgeCase:
    """One attack. program: the candidate; verdicts: all it may be given; short: it uses up whatever time it gets."""

    name: str
    title: str
    program: str
    verdicts: tuple[str, ...]
    short: bool

    @property
    def rules(self) -> Rules:
        """With the time that the case deserves."""
        return SHORT_RULES if self.short else RULES


@functools.cache
def judge_cases() -> tuple[JudgeCase, ...]:
    """All cases, by name."""
    return tuple(_case(path) for path in sorted(CASES.glob("*.toml")))


def _case(path: Path) -> JudgeCase:
    data = tomllib.loads(path.read_text())
    verdicts = tuple(data.get("verdicts", ["wrong"]))
    return JudgeCase(path.stem, data["title"], data["program"], verdicts, verdicts == ("timeout",) or "short" in data)


@dataclass(frozen=True)
class Vault:
    """Tests whose expected values are tokens that nobody can know."""

    kind: str
    tests: str
    tokens: tuple[str, ...]


def vaults() -> list[Vault]:
    """One of each kind: a check that is read, a check that is run, inputs and outputs."""
    tokens = tuple(secrets.token_hex(16) for _ in range(NUM_CALLS))
    head = "def check(candidate):\n"
    read = "".join(f"    assert candidate([{n}, 1]) == {token!r}\n" for n, token in enumerate(tokens))
    loop = f"    for n, token in enumerate({tokens!r}):\n        assert candidate([n, 1]) == token\n"
    lines = {"inputs": [f"{n}\n" for n in range(NUM_CALLS)], "outputs": [f"{token}\n" for token in tokens]}
    entry = "check(Solution().solve)"
    return [
        Vault("read", f"{head}{read}{entry}", tokens),
        Vault("run", f"{head}{loop}{entry}", tokens),
        Vault("stdio", json.dumps(lines), tokens),
    ]


def honest_tests() -> list[str]:
    """What an honest program passes, by the same three ways."""
    return [
        "def check(candidate):\n    assert candidate([3, 1, 2]) == [1, 2, 3]\ncheck(Solution().solve)",
        "def check(candidate):\n    for n in ([2, 1], [1]):\n        assert candidate(n) == sorted(n)\n"
        "check(Solution().solve)",
        '{"inputs": ["abc\\n"], "outputs": ["cba\\n"]}',
    ]


class Watched:
    """A sandbox that notes everything but the programs of checks, which know the tokens and never hold a candidate."""

    def __init__(self, inner: Sandbox) -> None:
        self.seen: list[bytes] = []
        self._inner = inner

    @property
    def posture(self) -> Posture:
        """The inner one's."""
        return self._inner.posture

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """Runs it; everything the candidate could read is kept."""
        if program.files["main.py"] != bundled("check_driver"):
            parts = [*program.files.values(), program.stdin, *(text.encode() for text in program.arguments)]
            parts += [f"{name}={value}".encode() for name, value in program.environment.items()]
            self.seen.append(b"\n".join(parts))
        return await self._inner.run(program, deadline_s)

    async def close(self) -> None:
        """The inner one is somebody else's."""
