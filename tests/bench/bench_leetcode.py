"""LeetCode's reference solutions, forgeries of them and mutants of them, judged in the sandbox and without one.

`make bench BENCH=leetcode ARGS="--data PATH"` prints one JSON line. PATH is a JSON array of rows with `solutions` and
`tests.functional`, or a folder with `train.json`. `ours` is verdicts per second of the judge, `baseline` the same of
exec() in a forked process, taken in turns over the same solutions; both run on the standard library and the packages
that are shipped with programs. details:

    references   how many pass, the cause of every failure, and where the two verdicts differ (nowhere, is the claim)
    forged       attacks on judging (tests/attacks/judge_cases), each put in place of some solutions: none may pass
    mutants      solutions with one small change: how many are caught, which survive, and where the verdicts differ
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crescendo.reward_service.judge.checks import split_check
from crescendo.reward_service.judge.conduct import judge
from crescendo.reward_service.judge.functional import Budget
from crescendo.reward_service.judge.inside import structures
from crescendo.reward_service.judge.inside.prelude import PRELUDE
from crescendo.reward_service.judge.libraries import SHIPPED, library_files
from crescendo.reward_service.judge.steps import Rules
from crescendo.reward_service.judge.verdicts import Judged
from crescendo.reward_service.sandbox.opening import Closed, open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import Sandbox
from tests.attacks.judging import judge_cases
from tests.bench.bare_check import __file__ as BARE_CHECK
from tests.bench.harness import Measured, progress, report
from tests.bench.mutants import Mutant, mutants_of

USUAL_PLACE = Path("../shared/data/leetcode")
DEADLINE_S = 120.0
RULES = Rules(Budget(case_s=4.0, total_s=10.0))
QUICK_RULES = Rules(Budget(case_s=1.0, total_s=2.0))  # for programs that are mostly wrong, and often endless
CHUNK = 100
SAY_EVERY_S = 5.0
MAX_LISTED = 200

# Gives a forgery, whose method is `solve`, the name under which a check calls it.
ADAPTER = """
try:
    _numbers = iter(range(10**9))
    Solution.{method} = lambda self, *arguments, **named: self.solve([next(_numbers) % 3, 1])
except NameError:
    pass
"""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """One problem of the data set."""

    number: int
    solution: str
    check: str


class Bare:
    """exec() of solution and check, in processes without any sandbox."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        for name in SHIPPED:
            for path, data in library_files(name).items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(data)
        nodes = Path(structures.__file__).read_text()
        self._prelude = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{PRELUDE}\n{nodes}"
        self._num_processes = num_processes
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()

    async def __aenter__(self) -> "Bare":
        for _ in range(self._num_processes):
            pipe = asyncio.subprocess.PIPE
            command = (sys.executable, "-I", "-S", str(BARE_CHECK))
            process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            assert process.stdin is not None
            process.stdin.write(json.dumps(self._prelude).encode() + b"\n")
            self._idle.put_nowait(process)
        return self

    async def check(self, source: str, check: str, rules: Rules) -> str:
        """`pass`, or why not."""
        process = await self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        line = json.dumps([source, check, rules.budget.total_s])
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()
        said = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        self._idle.put_nowait(process)
        return said.decode().strip()

    async def __aexit__(self, *exception: object) -> None:
        while not self._idle.empty():
            process = self._idle.get_nowait()
            process.kill()
            await process.wait()


@dataclass
class Sides:
    """Both ways to a verdict, how long each took, and how far the benchmark is."""

    sandbox: Sandbox
    bare: Bare
    width: int
    seconds: Counter[str] = field(default_factory=Counter)

    async def judge(self, source: str, check: str, rules: Rules) -> Judged:
        """In the sandbox."""
        return await judge(source, check, rules, self.sandbox, DEADLINE_S)

    async def map(self, side: str, what: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """Results in order, so many at once; the time counts for a side."""
        places = asyncio.Semaphore(self.width)

        async def one(item: T) -> R:
            async with places:
                return await what(item)

        started_s = time.perf_counter()
        found = await asyncio.gather(*map(one, items))
        self.seconds[side] += time.perf_counter() - started_s
        return found


class Told:
    """Says on standard error how far a part is."""

    def __init__(self, part: str, total: int) -> None:
        self._part, self._total = part, total
        self._started_s = self._said_s = time.monotonic()

    def at(self, done: int) -> None:
        """So many are done."""
        now_s = time.monotonic()
        if now_s - self._said_s >= SAY_EVERY_S or done == self._total:
            self._said_s = now_s
            left_s = (now_s - self._started_s) * (self._total - done) / max(1, done)
            progress(f"{self._part}: {done} of {self._total}, {left_s:.0f} s left")


def read_rows(path: Path) -> list[Row]:
    """All problems; ends the program with what to do when there are none."""
    file = path / "train.json" if path.is_dir() else path
    if not file.is_file():
        raise SystemExit(f"{file} is not there. Give the data set: make bench BENCH=leetcode ARGS='--data PATH'")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Row(number, row["solutions"], row["tests"]["functional"]) for number, row in enumerate(rows)]


async def references(sides: Sides, rows: Sequence[Row]) -> dict[str, Any]:
    """Every reference solution by both ways, in turns."""
    told = Told("references", len(rows))
    causes: dict[str, list[int]] = {}
    differing: list[int] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        bare = await sides.map("bare", lambda row: sides.bare.check(row.solution, row.check, RULES), part)
        ours = await sides.map("ours", lambda row: sides.judge(row.solution, row.check, RULES), part)
        for row, plain, judged in zip(part, bare, ours, strict=True):
            if not judged.is_correct:
                causes.setdefault(judged.detail.partition("; ")[2], []).append(row.number)
            if judged.is_correct != (plain == "pass"):
                differing.append(row.number)
                progress(f"problem {row.number}: judged {judged.detail!r}, un-sandboxed {plain!r}")
        told.at(start + len(part))
    passed = len(rows) - sum(map(len, causes.values()))
    return {"judged": len(rows), "passed": passed, "failures": causes, "verdicts_that_differ": differing}


async def forged(sides: Sides, rows: Sequence[Row], each: int, rng: random.Random) -> dict[str, Any]:
    """Every attack in place of some solutions."""
    tries: list[tuple[str, Row]] = [(case.name, row) for case in judge_cases() for row in rng.sample(rows, each)]
    programs = {case.name: case.program for case in judge_cases()}
    told = Told("forged", len(tries))
    passing: list[str] = []

    async def one(attempt: tuple[str, Row]) -> Judged:
        name, row = attempt
        method = str(split_check(row.check).entry[-1])
        return await sides.judge(programs[name] + ADAPTER.format(method=method), row.check, QUICK_RULES)

    for start in range(0, len(tries), CHUNK):
        part = tries[start : start + CHUNK]
        found = await sides.map("forged", one, part)
        passing += [
            f"{name} as {row.number}" for (name, row), judged in zip(part, found, strict=True) if judged.is_correct
        ]
        told.at(start + len(part))
    return {"attacks": len(programs), "judged": len(tries), "passed": len(passing), "passing": passing}


async def mutated(sides: Sides, rows: Sequence[Row], count: int, rng: random.Random) -> dict[str, Any]:
    """One mutant each of some solutions, by both ways."""
    drawn = [(row, mutant) for row in rng.sample(rows, count) for mutant in mutants_of(row.solution, 1, rng)]
    told = Told("mutants", len(drawn))
    by_operator: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    listed: list[str] = []
    differing: list[str] = []

    async def ours(pair: tuple[Row, Mutant]) -> Judged:
        return await sides.judge(pair[1].source, pair[0].check, QUICK_RULES)

    async def bare(pair: tuple[Row, Mutant]) -> str:
        return await sides.bare.check(pair[1].source, pair[0].check, QUICK_RULES)

    for start in range(0, len(drawn), CHUNK):
        part = drawn[start : start + CHUNK]
        judged = await sides.map("mutants", ours, part)
        plain = await sides.map("mutants", bare, part)
        for (row, mutant), verdict, said in zip(part, judged, plain, strict=True):
            place = f"{row.number}:{mutant.line} {mutant.operator}"
            by_operator[mutant.operator] += 1
            if verdict.is_correct:
                survived[mutant.operator] += 1
                listed.append(place)
            if verdict.is_correct != (said == "pass"):
                differing.append(place)
                progress(f"mutant {place}: judged {verdict.detail!r}, un-sandboxed {said!r}")
        told.at(start + len(part))
    return {
        "judged": len(drawn),
        "survived": survived.total(),
        "by_operator": {name: [survived[name], total] for name, total in by_operator.most_common()},
        "survivors": listed[:MAX_LISTED],
        "verdicts_that_differ": differing,
    }


async def measure(options: argparse.Namespace) -> Measured:
    """The whole benchmark."""
    rows = read_rows(options.data)[: options.limit or None]
    rng = random.Random(options.seed)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-leetcode-"))
        opened = await open_sandbox(SandboxOptions(jail=options.jail))
        stack.push_async_callback(opened.sandbox.close)
        if isinstance(opened.sandbox, Closed):
            raise SystemExit(opened.sandbox.reason)
        width = len(os.sched_getaffinity(0))
        sides = Sides(opened.sandbox, await stack.enter_async_context(Bare(Path(folder), width)), width)
        found = {"references": await references(sides, rows)}
        found["forged"] = await forged(sides, rows, min(options.forged, len(rows)), rng)
        found["mutants"] = await mutated(sides, rows, min(options.mutants, len(rows)), rng)
        posture = opened.sandbox.posture
    rates = {side: len(rows) / sides.seconds[side] for side in ("ours", "bare")}
    details = {**found, "boundary": posture.boundary, "jail": posture.jail, "seed": options.seed}
    return Measured("leetcode", rates["ours"], rates["bare"], "verdicts/s", details)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=USUAL_PLACE, help=f"default: {USUAL_PLACE}")
    parser.add_argument("--jail", default="auto", help="namespaces, landlock or runsc; auto: the strongest here")
    parser.add_argument("--limit", type=int, default=0, help="problems; 0: all")
    parser.add_argument("--forged", type=int, default=20, help="problems that each attack is tried on")
    parser.add_argument("--mutants", type=int, default=600, help="solutions that are changed, one mutant each")
    parser.add_argument("--seed", type=int, default=0)
    report(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
