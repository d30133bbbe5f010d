"""`python -m crescendo.buffer.archive archiver --spec-file PATH --ready-file PATH`: the archiver process.

Reads a ServiceSpec, starts the service, writes its host:port into the ready file and serves until SIGTERM, SIGINT
or a newer archiver. Dies with the thread that started it. Steps back from the processor: others compute.
"""

import argparse
import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

from crescendo.buffer.archive.service import start
from crescendo.common.errors import ConfigError, CrescendoError
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import ServiceSpec
from crescendo.common.telemetry import setup_logging

GRACE_S = 3.0
NICENESS = 10
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crescendo.buffer.archive")
    parser.add_argument("role", choices=("archiver",))
    parser.add_argument("--spec-file", type=Path, required=True, help="ServiceSpec as JSON")
    parser.add_argument("--ready-file", type=Path, required=True, help="gets host:port once the service is ready")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICENESS)
    try:
        spec = _read_spec(arguments.spec_file)
        setup_logging(RunFolder(Path(spec.run_folder)).logs, spec.run_id, spec.worker_id, capture_output=False)
        asyncio.run(_serve(spec, arguments.ready_file))
    except CrescendoError as error:
        print(f"archiver: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _read_spec(path: Path) -> ServiceSpec:
    try:
        return ServiceSpec.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the service spec {path} cannot be read: {error}", field="spec-file") from None


async def _serve(spec: ServiceSpec, ready_file: Path) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = await start(spec)
    signalled = asyncio.create_task(stopping.wait())
    try:
        write_atomically(ready_file, service.address)
        await asyncio.wait((signalled, service.loop), return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        await service.stop(GRACE_S)
    if service.loop.done() and not service.loop.cancelled():
        service.loop.result()


if __name__ == "__main__":
    sys.exit(main())
