"""The experience buffer on Redis or Valkey (7.2 or newer).

`connect` makes one; controller, trainer and engines each hold their own. It lives until `close`. Nothing is
kept in the process but the connection and the lease clock, so a process that dies loses nothing that was
acknowledged. What lies where is told in keys.py; each change is a script in scripts/.
"""

import time
from collections.abc import Callable

from crescendo.buffer.archived import Archived
from crescendo.buffer.client import PATIENCE_S, Client, open_client
from crescendo.buffer.fencing import Fencing
from crescendo.buffer.lease_clock import LeaseClock
from crescendo.buffer.ledger import Ledger
from crescendo.buffer.redo import RedoLog
from crescendo.buffer.registry import WeightRegistry

MAX_ATTEMPTS = 3
"""Lost leases after which a trajectory is dropped."""


class RedisBuffer(Fencing, Ledger, RedoLog, Archived, WeightRegistry):
    """ExperienceBuffer in Redis; safe for concurrent use by the tasks of one event loop."""

    def __init__(
        self,
        client: Client,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        budget_bytes: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(client)
        self._budget_bytes = budget_bytes
        self._max_attempts = max_attempts
        self._lease_clock = LeaseClock(monotonic)

    async def close(self) -> None:
        await self._client.close()


async def connect(
    url: str,
    run_id: str,
    *,
    patience_s: float = PATIENCE_S,
    max_attempts: int = MAX_ATTEMPTS,
    budget_bytes: int = 0,
    monotonic: Callable[[], float] = time.monotonic,
) -> RedisBuffer:
    """Connects to the buffer of a run.

    url: redis://, rediss:// or unix://, with options as connections.py tells; patience_s: how long a call is tried
    again while the server is away; budget_bytes: most that the run's payload may come to take (0: what the server
    has), beyond which no group is opened.
    Raises RequestError for a bad URL or run id, WorkerLostError when nothing answers, EnvironmentProblem when
    the login is refused, BufferStateError when the run's keys have another schema version.
    """
    client = await open_client(url, run_id, patience_s=patience_s)
    return RedisBuffer(client, max_attempts=max_attempts, budget_bytes=budget_bytes, monotonic=monotonic)
