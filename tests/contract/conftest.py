"""Fixtures of the contract suites."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, MemoryBuffer, connect
from tests.contract.buffer_cases import Driver, ManualClock

_runs = itertools.count()


@pytest.fixture(scope="session")
def buffer_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of the test session."""
    server = EmbeddedServer(tmp_path_factory.mktemp("valkey"))
    yield server.start()
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
