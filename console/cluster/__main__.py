"""`python -m crescendo.console.cluster`: the console as the chart deploys it."""

import argparse
import asyncio
import sys

import uvicorn

from crescendo.common.errors import CrescendoError
from crescendo.console.cluster.app import create_app
from crescendo.console.cluster.reader import Doorkeeper
from crescendo.console.cluster.sessions import Sessions


async def serve(options: argparse.Namespace) -> None:
    """Serves until a signal."""
    doorkeeper = Doorkeeper()
    app = create_app(doorkeeper, Sessions.from_environment(), namespace=options.namespace, actions=options.actions)
    config = uvicorn.Config(
        app, host=options.host, port=options.port, log_level="info", access_log=False, server_header=False,
        timeout_graceful_shutdown=10, limit_concurrency=256,
    )  # fmt: skip
    try:
        await uvicorn.Server(config).serve()
    finally:
        await doorkeeper.close()


def main() -> int:
    """Parses arguments and serves."""
    parser = argparse.ArgumentParser(prog="python -m crescendo.console.cluster", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (all)")
    parser.add_argument("--port", type=int, default=8080, help="TCP port (8080)")
    parser.add_argument("--namespace", default="", help="show this namespace only")
    changing = parser.add_mutually_exclusive_group()
    changing.add_argument("--actions", action="store_true", help="let people act on jobs, with their own rights")
    changing.add_argument("--read-only", dest="actions", action="store_false", help="show only (default)")
    try:
        asyncio.run(serve(parser.parse_args()))
    except CrescendoError as error:
        print(f"crescendo console: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
