"""pause, unpause, drain, checkpoint, quarantine, scale, promote, stop, status: one call to a run's controller each."""

import argparse
import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import Console

from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.cli.view import finished_panel, status_view
from crescendo.common.control import ControllerClient, read_controller
from crescendo.common.errors import RunFolderError
from crescendo.common.runfolder import RunFolder

T = TypeVar("T")


def ask(folder: RunFolder, question: Callable[[ControllerClient], Awaitable[T]]) -> T:
    """Connects to the run's controller, asks, disconnects; raises RunFolderError when no controller lives."""
    found = read_controller(folder)
    if found is None:
        raise RunFolderError(
            f"the run in {folder.root} has no living controller.", fix=f"Continue it: crescendo resume {folder.root}"
        )

    async def conversation() -> T:
        client = ControllerClient(found.address, folder.read_token())
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(conversation())


def pause(options: argparse.Namespace) -> int:
    """Parks running responses and stands still."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.pause())
    print(f"{folder.root} pauses at its next safe point. Go on with: crescendo unpause {folder.root}")
    return Exit.DONE


def unpause(options: argparse.Namespace) -> int:
    """Lets a paused run go on."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.resume())
    print(f"{folder.root} goes on.")
    return Exit.DONE


def drain(options: argparse.Namespace) -> int:
    """Ends the iteration, commits, then stands still."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.drain(secrets.token_hex(4)))
    print(f"{folder.root} ends its iteration, commits and stands still. Go on with: crescendo unpause {folder.root}")
    return Exit.DONE


def checkpoint(options: argparse.Namespace) -> int:
    """Commits after this iteration."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.commit(wait_s=0.0))
    print(f"{folder.root} commits after this iteration.")
    return Exit.DONE


def quarantine(options: argparse.Namespace) -> int:
    """Takes an engine out of service."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.quarantine(options.engine))
    print(f"{folder.root} goes on without {options.engine}: at once in a rollout phase, else from the next on.")
    return Exit.DONE


def scale(options: argparse.Namespace) -> int:
    """Adds or removes engines while the run goes on."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.scale_engines(options.engines))
    print(f"{folder.root} rolls out with {options.engines} engines: at once in a rollout phase, else from the next on.")
    return Exit.DONE


def promote(options: argparse.Namespace) -> int:
    """Enters the next stage, or a named one, at the end of the iteration."""
    folder = find_run(options.run)
    stage = ask(folder, lambda client: client.promote(options.stage))
    print(f"{folder.root} enters stage {stage} after this iteration.")
    return Exit.DONE


def stop(options: argparse.Namespace) -> int:
    """Ends the run so that it can be resumed."""
    folder = find_run(options.run)
    ask(folder, lambda client: client.stop(commit=options.commit))
    how = "after a checkpoint" if options.commit else "without a checkpoint"
    print(f"{folder.root} ends {how}. Continue it with: crescendo resume {folder.root}")
    return Exit.DONE


def status(options: argparse.Namespace) -> int:
    """Shows the run once: live, or what a finished run left."""
    folder = find_run(options.run)
    console = Console(highlight=False)
    if read_controller(folder) is None:
        console.print(finished_panel(folder))
    else:
        console.print(status_view(ask(folder, lambda client: client.status())))
    return Exit.DONE
