"""The sandbox: runs programs that a model wrote. What it guarantees and what it cannot stop: docs/security.md.

    opened = await open_sandbox(SandboxOptions())        # the strongest jail that works here, or one that refuses
    outcome = await opened.sandbox.run(Program("python", {"main.py": b"print(1)"}), deadline_s=30)
    await opened.sandbox.close()

`protocol` is the contract; `opening` chooses; `warm`, `bubblewrap` and `runsc` are the implementations; `inside` is what
runs in a jail before the candidate does.
"""

from crescendo.reward_service.sandbox.opening import Opened, open_sandbox
from crescendo.reward_service.sandbox.options import Floor, SandboxOptions
from crescendo.reward_service.sandbox.protocol import (
    Boundary,
    Ending,
    Jail,
    Limits,
    Outcome,
    Posture,
    Program,
    Sandbox,
)

__all__ = [
    "Boundary",
    "Ending",
    "Floor",
    "Jail",
    "Limits",
    "Opened",
    "Outcome",
    "Posture",
    "Program",
    "Sandbox",
    "SandboxOptions",
    "open_sandbox",
]
