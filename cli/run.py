"""`crescendo run` and `crescendo resume`: starts the run's processes, shows its progress, leaves none behind.

    check the run file and the machine        nothing is written before both pass
    make the run folder (run only)
    start controller and console              sessions of their own: a terminal's Ctrl-C does not reach them
    follow the status stream                  Ctrl-C: StopRun with a checkpoint; again: SIGTERM, SIGKILL after 10 s
                                              silent and idle for deadlines.heartbeat_s: it hangs, SIGKILL
    end whatever is left, say how it went

The controller starts everything else. Logs are in the run folder's logs/.
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections import deque
from pathlib import Path

from crescendo.cli.display import Display
from crescendo.cli.doctor import preflight
from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.cli.follow import connected, last_event, updates, wait_for_controller
from crescendo.cli.processes import Child, adopt_orphans, end_descendants, spawn
from crescendo.cli.view import finished_panel
from crescendo.common.config import Config, load_config, load_resolved, save_resolved
from crescendo.common.control import ControllerClient, read_controller
from crescendo.common.errors import CrescendoError, RunFolderError
from crescendo.common.runfolder import RUN_ID_VARIABLE, RunFolder
from crescendo.controller.ownership import is_stale
from crescendo.proto.v1 import controller_pb2

CONTROLLER_MODULE = "crescendo.controller"
CONSOLE_MODULE = "crescendo.console"
LAST_WORDS_S = 60.0  # from the run's end to the controller's
POLL_S = 0.05
LOOK_S = 1.0
IDLE_SHARE = 0.05  # of one core: below it a controller counts as standing still
SLOW_FACTOR = 4
KILL_GRACE_S = 10.0
ORPHAN_GRACE_S = 2.0
CONSOLE_START_S = 20.0
SHOWN_LOG_LINES = 8
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(options: argparse.Namespace) -> int:
    """Starts a new run."""
    overrides = list(options.set) + ([f"run.name={options.name}"] if options.name else [])
    config = load_config(Path(options.recipe), overrides)
    root = Path(config.run.folder) / config.run.name
    if options.resume and RunFolder(root).identity.exists():
        return _continue(RunFolder.open_existing(root), options, config)
    preflight(config)
    folder = RunFolder.create(root, config.run.name, os.environ.get(RUN_ID_VARIABLE, ""))
    save_resolved(config, folder.config)
    return _live(folder, config, options)


def resume(options: argparse.Namespace) -> int:
    """Continues a run that stopped or died."""
    return _continue(find_run(options.run), options)


def _continue(folder: RunFolder, options: argparse.Namespace, given: Config | None = None) -> int:
    """given: the run file, whose addresses count: services may have moved. All else was settled at the run's start."""
    found = read_controller(folder)
    if found is not None and not options.take_over and not is_stale(folder):
        raise RunFolderError(
            f"{folder.root} is running already, as process {found.pid}.",
            fix=f"Look: crescendo watch {folder.root}. When it hangs: crescendo resume {folder.root} --take-over",
        )
    config = load_resolved(folder.config)
    if folder.summary.exists():
        display = Display(plain=options.plain)
        display.console.print(finished_panel(folder))
        display.say(f"{folder.root} has finished; there is nothing to resume.")
        return Exit.DONE
    preflight(config)
    if given is not None and _addresses(given) != _addresses(config):
        config.buffer.url, config.reward_service.address = _addresses(given)
        save_resolved(config, folder.config)
    return _live(folder, config, options)


def _addresses(config: Config) -> tuple[str, str]:
    return config.buffer.url, config.reward_service.address


def _live(folder: RunFolder, config: Config, options: argparse.Namespace) -> int:
    """Lives of the run under this command: the first, and restarts after ends that may pass by themselves."""
    recovery = config.recovery
    console = config.console.enabled and options.console
    take_over, failures = options.take_over, 0
    while True:
        commits = set(folder.checkpoints.glob("commit-*.json"))
        session = Session(folder, config, plain=options.plain, console=console, take_over=take_over)
        code = session.go()
        failures = 1 if set(folder.checkpoints.glob("commit-*.json")) != commits else failures + 1
        if code != Exit.TEMPORARY or failures > options.restarts:
            return code
        take_over = False  # the folder is ours by now, or somebody took it from us
        wait_s = min(recovery.max_backoff_s, recovery.backoff_s * 2 ** (failures - 1))
        session.say(f"restart {failures} of {options.restarts} in {wait_s:.0f} s; Ctrl-C leaves it for later")
        for number in _INTERRUPTS:  # ignored while the processes ended
            signal.signal(number, _interrupt_wait)
        time.sleep(wait_s)


def _interrupt_wait(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class Session:
    """One life of a run's processes under this command."""

    def __init__(
        self, folder: RunFolder, config: Config, *, plain: bool, console: bool, take_over: bool = False
    ) -> None:
        self._folder = folder
        self._options = ["--take-over"] if take_over else []
        self._config = config
        self._with_console = console
        self._display = Display(plain=plain)
        self._status: controller_pb2.RunStatus | None = None
        self._client: ControllerClient | None = None
        self._controller: Child | None = None
        self._console: Child | None = None
        self._known_events = last_event(folder)
        self._heard_at = 0.0
        self._interrupts = 0
        self._following: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        """Prints a line."""
        self._display.say(text)

    def go(self) -> int:
        """Starts, follows, ends; returns the exit code."""
        adopt_orphans()
        root = str(self._folder.root)
        self._display.say(f"run folder  {root}")
        try:
            arguments = [CONTROLLER_MODULE, "--run-folder", root, *self._options]
            self._controller = spawn(arguments, self._folder.logs / "controller.log")
            if self._with_console:
                self._console = self._start_console()
            with self._display:
                asyncio.run(self._follow())
        finally:
            self._end_processes()
        return self._outcome()

    def _start_console(self) -> Child:
        ready = self._console_ready
        ready.unlink(missing_ok=True)
        arguments = [CONSOLE_MODULE, "--run-folder", str(self._folder.root), "--ready-file", str(ready)]
        return spawn([*arguments, "--port", str(self._config.console.port)], self._folder.logs / "console.log")

    @property
    def _console_ready(self) -> Path:
        return self._folder.controller.parent / "console.ready"

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _INTERRUPTS:
            loop.add_signal_handler(number, self._interrupt)
        announcing = asyncio.create_task(self._announce_console())
        self._following = asyncio.create_task(self._follow_controller())
        try:
            await self._following
        except asyncio.CancelledError:
            if self._interrupts < 2:
                raise
        finally:
            announcing.cancel()
            if self._stopping is not None:
                self._stopping.cancel()

    async def _follow_controller(self) -> None:
        alive = self._is_controller_alive
        pid = self._controller.pid if self._controller is not None else 0
        address = await wait_for_controller(self._folder, pid, alive, self._config.deadlines.start_s)
        if address is None:
            return
        async with connected(self._folder, address) as client:
            self._client = client
            self._heard_at = time.monotonic()
            listening = asyncio.create_task(self._listen_for_heartbeat())
            try:
                async for update in updates(client, alive, self._known_events):
                    self._heard_at = time.monotonic()
                    self._status = update.status
                    self._display.show(update)
            finally:
                listening.cancel()
        await self._last_words()

    async def _listen_for_heartbeat(self) -> None:
        """Kills a controller whose status stays away for deadlines.heartbeat_s while it uses no CPU time.

        One that computes may only be slow, as at its start on a busy machine: it gets SLOW_FACTOR times as long. Time
        in which this command itself stood still does not count.
        """
        limit_s = self._config.deadlines.heartbeat_s
        looked_at, heard_at, computed_s = time.monotonic(), 0.0, 0.0
        while self._controller is not None and self._controller.is_alive:
            now = time.monotonic()
            if now - looked_at > 3 * LOOK_S:
                self._heard_at = now
            looked_at = now
            if self._heard_at != heard_at:
                heard_at, computed_s = self._heard_at, self._controller.cpu_s
            silent_s = now - heard_at
            is_idle = self._controller.cpu_s - computed_s < IDLE_SHARE * silent_s
            if silent_s > (limit_s if is_idle else SLOW_FACTOR * limit_s):
                self._display.notice(f"the controller has not answered for {silent_s:.0f} s and is killed")
                self._controller.signal(signal.SIGKILL)
                return
            await asyncio.sleep(LOOK_S)

    def _is_controller_alive(self) -> bool:
        return self._controller is not None and self._controller.is_alive

    async def _last_words(self) -> None:
        """The controller writes its last files and ends its services; then it ends."""
        for _ in range(round(LAST_WORDS_S / POLL_S)):
            if not self._is_controller_alive():
                return
            await asyncio.sleep(POLL_S)

    async def _announce_console(self) -> None:
        deadline = asyncio.get_running_loop().time() + CONSOLE_START_S
        while self._console is not None and asyncio.get_running_loop().time() < deadline:
            if self._console_ready.exists():
                self._display.say(f"console     {self._console_ready.read_text().strip()}")
                return
            if not self._console.is_alive:
                break
            await asyncio.sleep(0.1)
        if self._console is not None:
            self._display.say(f"console     did not start; see {self._console.log}. The run goes on without it.")

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._display.notice("stopping after a checkpoint; press Ctrl-C again to end at once")
            self._stopping = asyncio.create_task(self._stop())
        elif self._following is not None:
            self._display.notice("ending at once")
            self._following.cancel()

    async def _stop(self) -> None:
        if self._client is None:
            self._signal_controller()
            return
        try:
            await self._client.stop(commit=True)
        except CrescendoError as error:
            self._display.say(f"the controller did not take the stop ({error}); asking the process")
            self._signal_controller()

    def _signal_controller(self) -> None:
        if self._controller is not None:
            self._controller.signal(signal.SIGTERM)

    def _end_processes(self) -> None:
        for number in _INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)  # ending takes seconds and must not be cut short
        for child in (self._console, self._controller):
            if child is not None:
                child.end(KILL_GRACE_S)
        end_descendants(ORPHAN_GRACE_S)

    def _outcome(self) -> int:
        code = (self._controller.exit_code if self._controller is not None else None) or 0
        failure = self._status.failure if self._status is not None else ""
        root = self._folder.root
        if code == 0 and self._folder.summary.exists() and not failure:
            self._display.console.print(finished_panel(self._folder))
            return Exit.DONE
        if self._interrupts or (code == 0 and not failure):
            if failure:
                self._display.say(f"error: {failure}")
            self._display.say(f"stopped. Continue it with: crescendo resume {root}")
            return Exit.INTERRUPTED
        for line in [failure] if failure else last_errors(self._folder.logs / "controller.log"):
            self._display.say(f"error: {line}")
        how = f"signal {-code}" if code < 0 else f"code {code}"
        self._display.say(f"the run failed (controller ended with {how}). Log: {self._folder.logs / 'controller.log'}")
        self._display.say(f"When it is fixed, continue with: crescendo resume {root}")
        if code < 0:  # killed, by whom ever: what it was doing is in the buffer and the run folder
            return Exit.TEMPORARY
        return code if code in (Exit.BAD_INPUT, Exit.ENVIRONMENT, Exit.TEMPORARY) else Exit.FAILED


def last_errors(log: Path) -> list[str]:
    """The last errors of a log of JSON lines; its last lines, when it has none (a crash prints plain text)."""
    plain: deque[str] = deque(maxlen=SHOWN_LOG_LINES)
    errors: deque[str] = deque(maxlen=3)
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                plain.append(line.rstrip())
                continue
            if isinstance(row, dict) and row.get("level") in ("ERROR", "CRITICAL"):
                errors.append(str(row.get("message", "")))
    return list(errors) or [line for line in plain if line] or ["the controller left no message."]
