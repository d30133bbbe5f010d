"""What each part of RedisBuffer holds: the connection, and a source of nonces."""

import itertools
import uuid

from crescendo.buffer.client import Client
from crescendo.buffer.keys import Keys


class Part:
    """Base of the parts; RedisBuffer is made of all of them and has one connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: Keys = client.keys
        self._owner = uuid.uuid4().hex
        self._calls = itertools.count()

    def _nonce(self) -> str:
        """Marks one call and its retries, so that the server repeats its answer instead of its work."""
        return f"{self._owner}:{next(self._calls)}"
