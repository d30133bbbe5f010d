"""The sandboxes under attack, opened once a jail, and the bait."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from crescendo.common.errors import WorkerStartError
from crescendo.reward_service.sandbox.bubblewrap import Bubblewrap
from crescendo.reward_service.sandbox.opening import open_cold, open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import Boundary, Jail, Posture, Sandbox
from tests.attacks.host import Host, bait
from tests.attacks.suite import JAILS, readable_interpreter

BINARIES = {"bubblewrap": "bwrap", "runsc": "runsc"}


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The bait."""
    with bait() as laid_out:
        yield laid_out


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=list(JAILS))
async def attacked(request: pytest.FixtureRequest, host: Host) -> AsyncIterator[tuple[str, Sandbox]]:
    """Each jail that this machine has; a jail that it lacks is skipped with the reason, and fails in CI."""
    sandbox = await open_jail(request.param)
    yield request.param, sandbox
    await sandbox.close()


async def open_jail(name: str) -> Sandbox:
    """A sandbox for one program at a time."""
    jail = Jail(name.partition("-")[0]) if name != "bubblewrap" else Jail.NAMESPACES
    interpreter = "" if name.startswith("namespaces") or name == "runsc" else readable_interpreter()
    if BINARIES.get(name) and not shutil.which(BINARIES[name]):
        missing(f"there is no {BINARIES[name]} on PATH")
    if name in ("landlock-warm", "landlock-cold", "bubblewrap") and not interpreter:
        missing("no interpreter here has a library that an unprivileged user can read")
    options = SandboxOptions(jail=jail, programs=1, is_cold=name.endswith("cold"), interpreter=interpreter)
    if name == "bubblewrap":
        try:
            maker = await Bubblewrap.find(interpreter)
            posture = Posture(Boundary.SHARED_KERNEL, jail, is_warm=False, limits_by="rlimit")
            return await open_cold(maker, posture, options)
        except WorkerStartError as error:
            missing(error.message)
    opened = await open_sandbox(options)
    if opened.sandbox.posture.jail is not jail:
        missing(opened.refusals[jail])
    return opened.sandbox


def missing(reason: str) -> None:
    """Skips with the reason; fails where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
