"""`crescendo watch`: follows a run that somebody else started. Ctrl-C ends the watching, not the run."""

import argparse
import asyncio

from crescendo.cli.display import Display
from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.cli.follow import connected, last_event, updates
from crescendo.cli.view import finished_panel
from crescendo.common.control import ControllerAddress, read_controller
from crescendo.common.runfolder import RunFolder


def watch(options: argparse.Namespace) -> int:
    """Shows live progress until the run ends; exit code 1 when it fails."""
    folder = find_run(options.run)
    display = Display(plain=options.plain)
    address = read_controller(folder)
    failure = ""
    if address is not None:
        try:
            failure = asyncio.run(_follow(folder, address, display))
        except KeyboardInterrupt:
            display.say(f"no longer watching; {folder.root} goes on.")
            return Exit.DONE
    if failure:
        display.say(f"error: {failure}")
        return Exit.FAILED
    display.console.print(finished_panel(folder))
    return Exit.DONE


async def _follow(folder: RunFolder, address: ControllerAddress, display: Display) -> str:
    failure = ""
    with display:
        async with connected(folder, address) as client:
            async for update in updates(client, lambda: read_controller(folder) == address, last_event(folder)):
                display.show(update)
                failure = update.status.failure
    return failure
