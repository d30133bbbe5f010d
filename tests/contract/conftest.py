"""Fixtures of the contract suites."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, MemoryBuffer, connect
from crescendo.buffer.permissions import acl_rule
from tests.contract.buffer_cases import Driver, ManualClock

_runs = itertools.count()


@pytest.fixture(scope="session")
def buffer_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of the test session, by a login that may do what `crescendo buffer acl` prints, and nothing else."""
    server = EmbeddedServer(tmp_path_factory.mktemp("valkey"), append_fsync="everysec")  # thousands of calls
    url = server.start()
    with contextlib.closing(redis.Redis.from_url(url)) as admin:
        admin.execute_command(*acl_rule("narrow").replace("PASSWORD", "secret").split())
    yield f"{url.replace('unix://', 'unix://narrow@')}?password=secret"
    server.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "redis"])
async def buffer(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[ExperienceBuffer]:
    """Each implementation, empty."""
    made: ExperienceBuffer
    if request.param == "memory":
        made = MemoryBuffer(monotonic=clock)
    else:
        url = request.getfixturevalue("buffer_url")
        made = await connect(url, f"contract-{next(_runs)}", monotonic=clock)
    yield made
    await made.close()


@pytest.fixture
async def driver(buffer: ExperienceBuffer, clock: ManualClock) -> Driver:
    """A controller that has taken over the buffer."""
    return await Driver.take_over(buffer, clock)
