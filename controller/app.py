"""The controller process: takes a prepared run folder, runs it to its end and leaves a summary.

Life: lock the folder -> serve ControllerService -> Session.execute -> summary, plot -> exit code. SIGTERM stops at
the next safe point with a commit; a second one ends at once (processes die with this one).
"""

import asyncio
import fcntl
import json
import logging
import os
import signal
import time
from pathlib import Path

from crescendo.common.config import Config, load_resolved
from crescendo.common.errors import CrescendoError, InternalError, RunFolderError
from crescendo.common.rpc import Server, serve
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.telemetry import setup_logging
from crescendo.controller.launch import Fleet
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.session import Session
from crescendo.controller.report import write_report
from crescendo.controller.service import SERVICE_NAME, ControllerServicer

log = logging.getLogger(__name__)

LINGER_S = 1.5  # watchers see the last status before the server ends


def lock_folder(folder: RunFolder) -> int:
    """Takes the folder for this process; raises RunFolderError when another controller has it."""
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunFolderError(
            f"{folder.root} is in use by another controller.",
            fix=f"Watch it with `crescendo watch {folder.root}`, or stop it first.",
        ) from None
    return descriptor


def uses_gpu(config: Config) -> bool:
    """Whether the run computes on GPUs: as placed, or, with `auto`, when the machine has one."""
    if config.placement.device != "auto":
        return config.placement.device == "gpu"
    return Path("/dev/nvidia0").exists()


async def run_controller(root: Path) -> int:
    """Runs a folder to its end or a stop; returns the process's exit code."""
    folder = RunFolder.open_existing(root)
    config = load_resolved(folder.config)
    setup_logging(folder.logs, folder.run_id(), "controller", capture_output=True)
    lock = lock_folder(folder)
    board, control = Board(folder, config.run.name), Control()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: control.stop(commit=True))
    servicer = ControllerServicer(board, control)
    server = await serve(servicer.register, [SERVICE_NAME], token=folder.read_token())
    announce(folder, server)
    try:
        return await _run_session(config, folder, board, control)
    finally:
        await asyncio.sleep(LINGER_S)
        await server.stop(1.0)
        folder.controller.unlink(missing_ok=True)
        board.close()
        os.close(lock)


async def _run_session(config: Config, folder: RunFolder, board: Board, control: Control) -> int:
    session = Session(config, folder, board, control, Fleet(config, folder, uses_gpu=uses_gpu(config)))
    try:
        await session.execute()
    except Exception as error:
        failure = error if isinstance(error, CrescendoError) else InternalError(f"{type(error).__name__}: {error}")
        log.exception("the run failed")
        board.status.phase, board.status.failure = "failed", str(failure)
        board.event("run.failed", str(failure), severity="error")
        write_atomically(
            folder.root / "failure.json", json.dumps({"error": str(failure), "exit_code": failure.exit_code})
        )
        return failure.exit_code
    if control.stop_requested:
        board.status.phase = "stopped"
        board.event("run.stopped", f"stopped after iteration {session.state.iteration}; it can be resumed")
        return 0
    await asyncio.to_thread(write_report, config, folder, session.state, list(board.rows))
    board.status.phase = "done"
    board.event("run.done", f"final accuracy {session.state.accuracy_final:.3f}")
    return 0


def announce(folder: RunFolder, server: Server) -> None:
    """Writes where this controller listens, for the command line and the console."""
    identity = {"address": server.address, "pid": os.getpid(), "started_unix_s": time.time()}
    write_atomically(folder.controller, json.dumps(identity))
