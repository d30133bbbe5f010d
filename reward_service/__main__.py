"""`python -m crescendo.reward_service {reward|executor} --spec-file PATH --ready-file PATH`.

Reads a ServiceSpec, starts the service, writes its host:port into the ready file (atomically) and serves until
SIGTERM or SIGINT, which drain it. Dies with the thread that started it. The executor begins by replacing its
own environment with an allow-listed one, whoever started it.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from crescendo.common.errors import ConfigError, CrescendoError
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.common.telemetry import setup_logging
from crescendo.reward_service.service_options import ServiceOptions
from crescendo.reward_service.workers import confine


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crescendo.reward_service")
    parser.add_argument("role", choices=("reward", "executor"))
    parser.add_argument("--spec-file", type=Path, required=True, help="ServiceSpec as JSON")
    parser.add_argument("--ready-file", type=Path, required=True, help="gets host:port once the service is ready")
    arguments = parser.parse_args()
    confine.die_with_parent(signal.SIGKILL)
    confine.hide_memory()  # the reward process holds a token; a worker runs as the same user
    if arguments.role == "executor":
        _leave_environment()
    try:
        spec = _read_spec(arguments.spec_file)
        if spec.run_folder:
            logs = RunFolder(Path(spec.run_folder)).logs
            setup_logging(logs, spec.run_id, spec.worker_id, capture_output=False)
        asyncio.run(_serve(arguments.role, spec, arguments.ready_file))
    except CrescendoError as error:
        print(f"{arguments.role}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _leave_environment() -> None:
    """Starts this program again, in the same process, without the variables that are not allow-listed."""
    clean = confine.clean_environment(os.environ)
    if dict(os.environ) != clean:
        os.execve(sys.executable, [sys.executable, "-I", "-m", "crescendo.reward_service", *sys.argv[1:]], clean)


def _read_spec(path: Path) -> ServiceSpec:
    try:
        return ServiceSpec.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the service spec {path} cannot be read: {error}", field="spec-file") from None


async def _start(role: str, spec: ServiceSpec) -> RunningService:
    if role == "executor":
        from crescendo.reward_service import executor

        return await executor.start(spec)
    from crescendo.reward_service import reward

    return await reward.start(spec)


async def _serve(role: str, spec: ServiceSpec, ready_file: Path) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = await _start(role, spec)
    try:
        write_atomically(ready_file, service.address)
        await stopping.wait()
    finally:
        await service.stop(ServiceOptions.parse(spec.options).listen.drain_s)


if __name__ == "__main__":
    sys.exit(main())
