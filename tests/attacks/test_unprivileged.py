"""Both warm jails, opened by a user without any privilege, as in a pod under Pod Security `restricted`."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attacks.conftest import missing
from tests.attacks.suite import readable_interpreter, source_folder

SCRIPT = Path(__file__).with_name("as_user.py")
USER = 64201  # any that owns nothing
WAIT_S = 90.0


async def outcomes_of(jail: str) -> dict[str, dict[str, Any]]:
    """What the programs of as_user.py came to, by name; the posture under the empty name."""
    interpreter = readable_interpreter()
    if not interpreter:
        missing("no interpreter here has a library that an unprivileged user can read")
    folders = [str(Path(source_folder()).parent), str(Path(psutil.__file__).parents[1])]
    user = USER if os.geteuid() == 0 else None
    process = await asyncio.create_subprocess_exec(
        *(interpreter, "-S", "-I", str(SCRIPT), jail, *folders),
        stdout=asyncio.subprocess.PIPE,
        env={"TMPDIR": "/tmp", "PATH": "/usr/bin:/bin"},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    lines = [json.loads(line) for line in output.splitlines()]
    if lines[0]["jail"] != jail:
        missing(str(lines[0]["refusals"]))
    assert lines[0]["uid"] != 0
    assert process.returncode == 0
    return {line.get("name", ""): line for line in lines}


@pytest.mark.parametrize("jail", ["landlock", "namespaces"])
async def test_without_privilege(jail: str) -> None:
    """No root, no capability, no writable cgroup: the same is held."""
    found = await outcomes_of(jail)
    assert found["hello"]["said"] == "hello\n"
    assert {found[name]["said"] for name in ("read", "network", "signal", "mode", "times", "memory")} == {"held\n"}
    assert found["spin"]["ending"] == "timeout"
    forked = {"parent\nchild\n", "child\nparent\n", "parent\n"} if jail == "namespaces" else {"held\n"}
    assert found["fork"]["said"] in forked
    # Without a cgroup, the memory of several processes together is watched.
    assert found["children"]["ending"] == ("memory" if jail == "namespaces" else "exited")
