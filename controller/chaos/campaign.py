"""A fault campaign: real runs of a recipe, faults from outside by a seeded plan, then the audit.

    start a run -> wait for its first step -> fault -> (recovered, or not) -> fault -> ... -> the run ends -> audit
         ^                    |
         +-- resume, when everything died (the person or the restart policy that a run has)

A run that ends before the plan does is followed by another, so that every fault hits a living run. The campaign is
the parent of everything, adopts orphans, and kills nothing but its own descendants. Called by `crescendo chaos`
(cli/chaos.py), which also holds the run's command line; lives for one call of `run`.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from crescendo.buffer import EmbeddedServer
from crescendo.common.config import load_resolved
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.controller.chaos.audit import Broken, audit
from crescendo.controller.chaos.evidence import gather
from crescendo.controller.chaos.inject import Hit, Injector
from crescendo.controller.chaos.plan import Fault, plan
from crescendo.controller.chaos.targets import descendants, find_targets, left_behind

TICK_S = 0.2
STOP_MARGIN_S = 10.0
ENDING_S = 30.0
RESUME_PAUSE_S = 1.0
MAX_RESUMES_WITHOUT_PROGRESS = 10

Command = Callable[[Path | None, str], list[str]]
"""Arguments that start a run of this name (folder None), or resume the folder."""


@dataclass
class RunRecord:
    """What happened to one run of the campaign. resumes: times that everything had died."""

    name: str
    hits: list[Hit] = field(default_factory=list)
    resumes: int = 0
    finished: bool = False
    broken: list[Broken] = field(default_factory=list)


@dataclass
class Campaign:
    """Faults by a seed over as many runs as it takes.

    within_s: longest wait from a recovery to the next fault; run_limit_s: longest time of one run; spared: kinds of
    processes that are left alone.
    """

    command: Command
    runs: Path
    name: str
    seed: int
    num_faults: int
    say: Callable[[str], None]
    within_s: float = 8.0
    run_limit_s: float = 1800.0
    spared: Sequence[str] = ()

    async def run(self) -> list[RunRecord]:
        """The records of its runs, audited."""
        faults = plan(self.seed, self.num_faults, self.within_s)
        records: list[RunRecord] = []
        pending: Fault | None = next(faults, None)
        while pending is not None:
            name = f"{self.name}-{self.seed}-{len(records)}"
            one = _LivingRun(self, name)
            try:
                pending = await one.live(pending, faults)
            finally:
                _kill_descendants()
            records.append(one.record)
            if not one.record.hits and pending is not None:
                self.say(f"{name} ended before a fault could hit it; the campaign ends here.")
                break
        return records


class _LivingRun:
    """One run, from its start to its audit."""

    def __init__(self, campaign: Campaign, name: str) -> None:
        self._campaign = campaign
        self._folder = RunFolder(campaign.runs / name)
        self.record = RunRecord(name)
        self._seen: dict[int, float] = {}
        self._down: list[tuple[float, float]] = []
        self._log = campaign.runs / f"{name}.out"
        self._process: subprocess.Popen[bytes] | None = None
        self._injector: Injector | None = None
        self._fruitless = 0
        self._steps = 0

    async def live(self, pending: Fault | None, faults: Iterator[Fault]) -> Fault | None:
        """Runs to the end under faults; returns the fault that came too late for this run."""
        self._start(None)
        deadline = time.monotonic() + self._campaign.run_limit_s
        due: float | None = None
        while await self._tick():
            if time.monotonic() > deadline:
                self._say(f"did not end within {self._campaign.run_limit_s:.0f} s and is killed")
                break
            if pending is None or not self._may_hit(pending):
                due = None
                continue
            due = due if due is not None else time.monotonic() + pending.wait_s
            if time.monotonic() >= due and await self._hit(pending):
                pending, due = next(faults, None), None
        await self._end()
        return pending

    # One tick -----------------------------------------------------------------------------------------

    async def _tick(self) -> bool:
        """Looks after the run; false when it has ended for good."""
        await asyncio.sleep(TICK_S)
        self._seen |= descendants()
        if self._injector is not None:
            self._injector.wake()
        self._note_steps()
        if self._process is None or self._process.poll() is None:
            _reap(self._process.pid if self._process else 0)
            return True
        if self._folder.summary.exists():
            self.record.finished = True
            return False
        return await self._resume(self._process.returncode)

    async def _resume(self, code: int) -> bool:
        """Starts the run again after everything died; false when that leads nowhere."""
        begun, steps = time.time(), self._steps
        while find_targets(self._folder) and time.time() - begun < ENDING_S:
            _reap(0)
            await asyncio.sleep(TICK_S)
        self._fruitless = self._fruitless + 1 if steps == self._note_steps() else 0
        if self._fruitless > MAX_RESUMES_WITHOUT_PROGRESS or not self._folder.identity.exists():
            self._say(f"ended with code {code} and cannot be resumed")
            return False
        await asyncio.sleep(RESUME_PAUSE_S)
        self.record.resumes += 1
        self._say(f"ended with code {code}; resuming")
        self._start(self._folder.root)
        self._down.append((begun, time.time()))
        return True

    def _start(self, folder: Path | None) -> None:
        arguments = self._campaign.command(folder, self.record.name)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _note_steps(self) -> int:
        """Counts rows of metrics, and marks as recovered the faults that lie before the newest."""
        rows = [float(row["unix_seconds"]) for row in read_jsonl(self._folder.metrics) if "unix_seconds" in row]
        for hit in self.record.hits:
            if not hit.recovered_at:
                hit.recovered_at = next((at for at in rows if at > hit.at), 0.0)
        if len(rows) > self._steps:
            self._fruitless = 0
        self._steps = len(rows)
        return self._steps

    # Faults -------------------------------------------------------------------------------------------

    def _may_hit(self, fault: Fault) -> bool:
        if not self._steps or self._process is None or self._process.poll() is not None:
            return False
        hits = self.record.hits
        return not hits or bool(hits[-1].recovered_at) or fault.overlaps

    async def _hit(self, fault: Fault) -> bool:
        targets = find_targets(self._folder)
        victim = fault.victim(targets, self._campaign.spared)
        if victim is None:
            return False
        injector = self._injector = self._injector or self._make_injector()
        hit = await injector.inject(fault, victim, targets)
        self.record.hits.append(hit)
        self._say(f"fault {fault.number}: {fault.kind} {hit.victim} (pid {hit.pid})")
        return True

    def _make_injector(self) -> Injector:
        config = load_resolved(self._folder.config)
        embedded = config.buffer.name == "embedded"
        url = EmbeddedServer.from_config(self._folder.buffer, config.buffer).url if embedded else config.buffer.url
        return Injector(url, self._folder.read_token(), stop_s=2 * config.deadlines.heartbeat_s + STOP_MARGIN_S)

    # The end ------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Waits for stragglers, then audits."""
        if self._injector is not None:
            self._injector.wake(everybody=True)
        if self._process is not None and self._process.poll() is None:
            _kill_descendants()
        ended = time.monotonic() + ENDING_S
        run_id = self._folder.run_id()
        while (left := left_behind(self._seen, run_id)) and time.monotonic() < ended:
            _reap(0)
            await asyncio.sleep(TICK_S)
        self._note_steps()
        done = [row["unix_seconds"] for row in read_jsonl(self._folder.events) if row.get("kind") == "run.done"]
        for hit in self.record.hits:
            hit.recovered_at = hit.recovered_at or next((float(at) for at in done if at > hit.at), 0.0)
        self.record.broken = audit(await gather(self._folder), down_s=self._down)
        self.record.broken += [Broken("left behind", what) for what in left]
        for one in self.record.broken:
            self._say(f"BROKEN {one.promise}: {one.what}")
        (self._folder.root / "chaos.json").write_text(json.dumps(to_dict(self.record), indent=1))
        self._say(f"finished: {self.record.finished}, {len(self.record.hits)} faults, {self.record.resumes} resumes")

    def _say(self, text: str) -> None:
        self._campaign.say(f"{self.record.name}: {text}")


def to_dict(record: RunRecord) -> dict[str, object]:
    """A record as JSON values."""
    return {
        "name": record.name,
        "finished": record.finished,
        "resumes": record.resumes,
        "broken": [{"promise": one.promise, "what": one.what} for one in record.broken],
        "hits": [
            {"fault": hit.fault.kind, "victim": hit.victim, "at": hit.at, "seconds": hit.seconds,
             "unflushed": hit.unflushed, "overlaps": hit.fault.overlaps}
            for hit in record.hits
        ],
    }  # fmt: skip


def _reap(command: int) -> None:
    """Collects ended orphans that were adopted; the command's own end is for its Popen."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid != command and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def _kill_descendants() -> None:
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
