"""A process with a sandbox and a program at work in it; says which processes it started, then waits to be killed."""

import asyncio
import json
import sys

from crescendo.reward_service.sandbox.opening import open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import Limits, Program
from tests.attacks.host import processes_below

SLEEP = Program("python", {"main.py": b"import time; time.sleep(60)"}, limits=Limits(wall_s=60))


async def main() -> None:
    """Arguments: jail, interpreter."""
    opened = await open_sandbox(SandboxOptions(jail=sys.argv[1], interpreter=sys.argv[2], programs=1))
    if opened.refusals:
        print(json.dumps(str(opened.refusals)), flush=True)
        return
    running = asyncio.create_task(opened.sandbox.run(SLEEP, 60))
    await asyncio.sleep(0.5)
    print(json.dumps(sorted(processes_below())), flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main())
