"""A sandbox opened by an unprivileged user: `as_user.py JAIL FOLDER...`, with the folders to import from.

Prints one JSON object a line: the posture, then the outcome of each program. Run by test_unprivileged.py with a plain
interpreter, because the environment of the tests may lie in a folder that only root can enter.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = sys.argv[2:]

from crescendo.reward_service.sandbox.opening import open_sandbox  # noqa: E402
from crescendo.reward_service.sandbox.options import SandboxOptions  # noqa: E402
from crescendo.reward_service.sandbox.protocol import Limits, Program  # noqa: E402

PROGRAMS = {
    "hello": b"print('hello')",
    "fork": b"import os\ntry:\n    print('child' if os.fork() == 0 else 'parent')\nexcept OSError:\n    print('held')",
    "read": b"try:\n    print(len(open('/etc/passwd').read()))\nexcept OSError:\n    print('held')",
    "network": b"import socket\ntry:\n    socket.socket()\nexcept OSError:\n    print('held')",
    "signal": b"import os\ntry:\n    os.kill(SERVER, 15)\nexcept OSError:\n    print('held')",
    "mode": b"import os\ntry:\n    os.chmod('BAIT', 0)\nexcept OSError:\n    print('held')",
    "times": b"import os\ntry:\n    os.utime('BAIT', (0, 0))\nexcept OSError:\n    print('held')",
    "spin": b"while True: pass",
    "memory": b"try:\n    bytearray(1 << 30)\nexcept MemoryError:\n    print('held')",
    "children": b"""
import os, time
try:
    children = [os.fork() for _ in range(3)]
    block = b"x" * (100 << 20)
    time.sleep(10)
except OSError:
    print('held')
""",
}


async def main() -> None:
    """See the module."""
    bait = Path(tempfile.mkdtemp(prefix="attacks-")) / "bait"
    bait.write_text("the server's own file, of the same user")
    opened = await open_sandbox(SandboxOptions(jail=sys.argv[1], programs=1, interpreter=sys.executable))
    posture = opened.sandbox.posture
    print(json.dumps({"jail": posture.jail, "uid": os.geteuid(), "refusals": {**opened.refusals}}), flush=True)
    for name, source in PROGRAMS.items():
        source = source.replace(b"SERVER", str(os.getpid()).encode()).replace(b"BAIT", bytes(bait))
        outcome = await opened.sandbox.run(Program("python", {"main.py": source}, limits=Limits(wall_s=3)), 30)
        said = outcome.stdout.decode()
        print(json.dumps({"name": name, "ending": outcome.ending, "said": said, "reason": outcome.reason}), flush=True)
    await opened.sandbox.close()
    shutil.rmtree(bait.parent)


if __name__ == "__main__":
    asyncio.run(main())
