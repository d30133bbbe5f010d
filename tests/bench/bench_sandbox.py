"""Isolated runs of a small Python program a second, against bare starts of the interpreter that isolates nothing.

Prints one JSON object. `ours` is the `namespaces` jail by warm fork, several at once (target for `ratio`: 1.0);
`baseline` is `python3 -S -I` started and waited for, one a core at once, as fast as a loop over posix_spawn can be.
`jails` has every jail that is here: rate, ratio, and the time from start to result; `bubblewrap` (target 0.5) and
`landlock`, whose interpreter may be another one, are compared with that one's bare starts. The posture of what is
measured is that of tests/attacks/test_posture.py.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from crescendo.common.errors import CrescendoError
from crescendo.reward_service.sandbox.bubblewrap import Bubblewrap
from crescendo.reward_service.sandbox.opening import open_cold, open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import Boundary, Jail, Limits, Posture, Program, Sandbox
from crescendo.reward_service.sandbox.zygote_process import own_interpreter
from tests.attacks.suite import JAILS, readable_interpreter
from tests.bench.harness import Measured, median, progress, report, rounded, take_turns

SOURCE = "print(sum(range(100)))"
PROGRAM = Program("python", {"main.py": SOURCE.encode()}, limits=Limits(wall_s=30))
DEADLINE_S = 120.0
SHARE = {"runsc": 20, "namespaces-cold": 5, "landlock-cold": 5}  # of the runs: one in so many


def bare(interpreter: str, count: int, at_once: int) -> float:
    """Starts of an interpreter a second."""
    null = os.open(os.devnull, os.O_RDWR)
    command = [interpreter, "-S", "-I", "-c", SOURCE]
    actions = [(os.POSIX_SPAWN_DUP2, null, 1)]
    started_s = time.perf_counter()
    living, started = 0, 0
    try:
        while started < count or living:
            if started < count and living < at_once:
                os.posix_spawn(interpreter, command, {}, file_actions=actions)
                living, started = living + 1, started + 1
            else:
                _, status = os.wait()
                living -= 1
                if status:
                    raise SystemExit(f"{interpreter} ended with {status}")
    finally:
        os.close(null)
    return count / (time.perf_counter() - started_s)


async def isolated(sandbox: Sandbox, count: int) -> float:
    """Runs a second, with as many at once as the sandbox has places."""
    started_s = time.perf_counter()
    outcomes = await asyncio.gather(*(sandbox.run(PROGRAM, DEADLINE_S) for _ in range(count)))
    rate = count / (time.perf_counter() - started_s)
    wrong = [outcome for outcome in outcomes if outcome.stdout != b"4950\n"]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {count} runs failed: {wrong[0]}")
    return rate


async def alone(sandbox: Sandbox, count: int) -> list[float]:
    """Seconds from the call to the outcome, one after another."""
    seconds = []
    for _ in range(count):
        started_s = time.perf_counter()
        await sandbox.run(PROGRAM, DEADLINE_S)
        seconds.append(time.perf_counter() - started_s)
    return seconds


async def open_jails(at_once: int) -> dict[str, Sandbox]:
    """Those of tests/attacks that work here."""
    found: dict[str, Sandbox] = {}
    for name in JAILS:
        jail = Jail.NAMESPACES if name == "bubblewrap" else Jail(name.partition("-")[0])
        interpreter = readable_interpreter() if name.startswith(("landlock", "bubblewrap")) else ""
        options = SandboxOptions(jail=jail, programs=at_once, is_cold=name.endswith("cold"), interpreter=interpreter)
        if name == "bubblewrap":
            posture = Posture(Boundary.SHARED_KERNEL, jail, is_warm=False, limits_by="rlimit")
            try:
                found[name] = await open_cold(await Bubblewrap.find(interpreter), posture, options)
            except CrescendoError as error:
                progress(f"{name}: {error.message}")
            continue
        opened = await open_sandbox(options)
        if opened.sandbox.posture.jail is jail:
            found[name] = opened.sandbox
        else:
            progress(f"{name}: {opened.refusals.get(jail, '')}")
    return found


def measure(runner: asyncio.Runner, count: int, rounds: int, cores: int) -> Measured:
    """Takes turns over all jails and the bare interpreters."""
    jails = runner.run(open_jails(2 * cores))
    if "namespaces-warm" not in jails:
        raise SystemExit("the namespaces jail does not work here: there is nothing to measure")
    sides: dict[str, Callable[[], float]] = {}
    for interpreter in {own_interpreter(), readable_interpreter()} - {""}:
        sides[interpreter] = lambda interpreter=interpreter: bare(interpreter, count, cores)  # type: ignore[misc]
    for name, sandbox in jails.items():
        number = max(1, count // SHARE.get(name, 1))
        sides[name] = lambda sandbox=sandbox, number=number: runner.run(  # type: ignore[misc]
            isolated(sandbox, number)
        )
    try:
        rates = take_turns(sides, rounds)
        times = {name: runner.run(alone(jails[name], max(3, 100 // SHARE.get(name, 1)))) for name in jails}
        postures = {name: jails[name].posture for name in jails}
    finally:
        for sandbox in jails.values():
            runner.run(sandbox.close())
    baseline = median(rates[own_interpreter()])
    details: dict[str, Any] = {"cores": cores, "at_once": 2 * cores, "jails": {}}
    for name, posture in postures.items():
        of = readable_interpreter() if name.startswith(("landlock", "bubblewrap")) else own_interpreter()
        details["jails"][name] = {
            "per_s": rounded(median(rates[name])),
            "per_s_per_core": rounded(median(rates[name]) / cores),
            "ratio": rounded(statistics.median(a / b for a, b in zip(rates[name], rates[of], strict=True))),
            "p50_ms": rounded(1000 * quantile(times[name], 0.5)),
            "p99_ms": rounded(1000 * quantile(times[name], 0.99)),
            "limits_by": posture.limits_by,
            "boundary": str(posture.boundary),
        }
    return Measured("sandbox", median(rates["namespaces-warm"]), baseline, "runs/s", details)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share lies, of a sorted list."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="a jail and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with asyncio.Runner() as runner:
        report(measure(runner, arguments.runs, arguments.rounds, arguments.cores))


if __name__ == "__main__":
    main()
