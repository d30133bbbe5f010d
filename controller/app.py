"""The controller process: takes a prepared run folder, runs it to its end and leaves a summary.

Life: lock the folder -> serve ControllerService -> Session.execute -> summary, plot -> exit code. SIGTERM stops at
the next safe point with a commit; a second one ends at once (processes die with this one).
"""

import asyncio
import json
import logging
import os
import signal
import time
from pathlib import Path

from crescendo.common.config import Config, load_resolved
from crescendo.common.errors import TEMPORARY, CrescendoError, InternalError
from crescendo.common.rpc import Server, serve
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.telemetry import setup_logging
from crescendo.controller.launch import Fleet
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.quarantine import Quarantine
from crescendo.controller.loop.session import Session
from crescendo.controller.ownership import FolderLock
from crescendo.controller.report import write_report
from crescendo.controller.service import SERVICE_NAME, ControllerServicer

log = logging.getLogger(__name__)

LINGER_S = 1.5  # watchers see the last status before the server ends
PORT_VARIABLE = "CRESCENDO_CONTROLLER_PORT"  # a fixed port, where a Service of the cluster leads to it
CALLERS = frozenset({"controller", "operator", "console"})


def uses_gpu(config: Config) -> bool:
    """Whether the run computes on GPUs: as placed, or, with `auto`, when the machine has one."""
    if config.placement.device != "auto":
        return config.placement.device == "gpu"
    return Path("/dev/nvidia0").exists()


async def run_controller(root: Path, *, take_over: bool = False) -> int:
    """Runs a folder to its end or a stop; returns the process's exit code.

    take_over: also when another controller has it, which is fenced out.
    """
    folder = RunFolder.open_existing(root)
    config = load_resolved(folder.config)
    setup_logging(folder.logs, folder.run_id(), "controller", capture_output=True)
    lock = FolderLock.take(folder, take_over=take_over)
    board = Board(folder, config.run.name, may_write=lambda: lock.held)
    control = Control(Quarantine(folder.engines_out))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: control.stop(commit=True))
    touching = asyncio.create_task(lock.touch(), name="lock")
    servicer = ControllerServicer(board, control)
    port = int(os.environ.get(PORT_VARIABLE, "0"))
    server = await serve(servicer.register, [SERVICE_NAME], token=folder.read_token(), roles=CALLERS, port=port)
    announce(folder, server)
    fleet = Fleet(config, folder, uses_gpu=uses_gpu(config), evict=take_over)
    try:
        return await _run_session(Session(config, folder, board, control, fleet, lock))
    finally:
        await asyncio.sleep(LINGER_S)
        await server.stop(1.0)
        touching.cancel()
        if lock.held:
            folder.controller.unlink(missing_ok=True)
        board.close()
        lock.release()


async def _run_session(session: Session) -> int:
    config, folder, board, control = session.config, session.folder, session.board, session.control
    try:
        await session.execute()
        if not control.stop_requested and session.lock.held:
            await asyncio.to_thread(write_report, config, folder, session.state, list(board.rows))
    except Exception as error:
        failure = error if isinstance(error, CrescendoError) else InternalError(f"{type(error).__name__}: {error}")
        log.exception("the run failed")
        return _fail(session, failure)
    if control.stop_requested:
        board.status.phase = "stopped"
        board.event("run.stopped", f"stopped after iteration {session.state.iteration}; it can be resumed")
        return 0
    board.status.phase = "done"
    board.event("run.done", f"final accuracy {session.state.accuracy_final:.3f}")
    return 0


def _fail(session: Session, failure: CrescendoError) -> int:
    """Leaves the reason in the run folder, unless it is somebody else's now; returns the exit code."""
    board, code = session.board, exit_code(failure)
    board.status.phase, board.status.failure = "failed", str(failure)
    board.event("run.failed", str(failure), severity="error", exit_code=code)
    if session.lock.held:
        text = json.dumps({"error": str(failure), "exit_code": code})
        write_atomically(session.folder.root / "failure.json", text)
    return code


def exit_code(failure: CrescendoError) -> int:
    """What the controller ends with: TEMPORARY where resuming may be all that it takes."""
    return TEMPORARY if failure.retryable else failure.exit_code


def announce(folder: RunFolder, server: Server) -> None:
    """Writes where this controller listens, for the command line and the console."""
    identity = {"address": server.address, "pid": os.getpid(), "started_unix_s": time.time()}
    write_atomically(folder.controller, json.dumps(identity))
