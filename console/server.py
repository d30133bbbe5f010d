"""Serves the console of one run folder on loopback until a signal."""

import socket
from collections.abc import Callable

import uvicorn

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.runfolder import RunFolder
from crescendo.console.access import Access
from crescendo.console.app import create_app
from crescendo.console.source import SwitchingRun

HOST = "127.0.0.1"
DRAIN_S = 1


async def serve_console(folder: RunFolder, port: int, *, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. announce gets the one-time link once the port is open.

    Raises EnvironmentProblem when the port is taken.
    """
    listening = _listen(port)
    bound = listening.getsockname()[1]
    access = Access((f"{HOST}:{bound}", f"localhost:{bound}"))
    source = SwitchingRun(folder)
    config = uvicorn.Config(
        create_app(source, access),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        lifespan="off",
    )
    announce(access.link)
    try:
        await uvicorn.Server(config).serve([listening])
    finally:
        listening.close()
        await source.close()


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(
            f"port {port} on {HOST} cannot be had: {error.strerror}.",
            field="console.port",
            fix="Choose another port, or 0 for a free one.",
        ) from None
    return listening
