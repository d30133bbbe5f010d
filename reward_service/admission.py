"""How much work the reward process holds at once, in all and for each caller; beyond that a call is refused.

A caller is an identity: the name in its client certificate, else the token it gave. Nothing waits here: what is
refused was not taken, and the refusal says when to come again.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from crescendo.common.errors import OverloadError
from crescendo.common.rpc.identity import peer_identity
from crescendo.proto.v1 import reward_pb2

MIN_RETRY_S = 0.2
MAX_RETRY_S = 10.0


class Caller(Protocol):
    """What is read of a call's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the client's certificate says, if it showed one."""
        ...

    def invocation_metadata(self) -> Any:
        """The call's metadata."""
        ...


def identity_of(caller: Caller) -> str:
    """Who calls: the identity in a verified client certificate, else a digest of the token."""
    peer = peer_identity(caller.auth_context())
    if peer is not None:
        return peer.uri
    given = dict(caller.invocation_metadata() or ()).get("authorization", "")
    token = given if isinstance(given, bytes) else given.encode()
    return f"token-{hashlib.sha256(token).hexdigest()[:8]}"


class Admission:
    """`with admission.hold(identity, items):` around the work; raises OverloadError with a delay instead.

    max_items, max_bytes: held at once; identity_share: of either, that one identity may hold.
    """

    def __init__(self, max_items: int, max_bytes: int, identity_share: float) -> None:
        self.num_items = 0
        self.num_bytes = 0
        self.num_refused = 0
        self.progress_s = time.monotonic()
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._share = identity_share
        self._items_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()
        self._items_per_s = 0.0

    @contextmanager
    def hold(self, identity: str, items: Sequence[reward_pb2.ScoreItem]) -> Iterator[None]:
        """Counts items as held while the context lasts."""
        num_items, num_bytes = len(items), sum(len(item.response) + len(item.prompt) for item in items)
        self._check(identity, num_items, num_bytes)
        started_s = time.monotonic()
        self._count(identity, num_items, num_bytes)
        try:
            yield
            self.progress_s = time.monotonic()
            self._items_per_s = num_items / max(1e-6, self.progress_s - started_s)
        finally:
            self._count(identity, -num_items, -num_bytes)

    def _count(self, identity: str, num_items: int, num_bytes: int) -> None:
        self.num_items += num_items
        self.num_bytes += num_bytes
        self._items_of[identity] += num_items
        self._bytes_of[identity] += num_bytes
        if not self._items_of[identity]:
            del self._items_of[identity], self._bytes_of[identity]

    def _check(self, identity: str, num_items: int, num_bytes: int) -> None:
        quota_items, quota_bytes = int(self._max_items * self._share), int(self._max_bytes * self._share)
        held = (self.num_items, self.num_bytes, self._items_of[identity], self._bytes_of[identity])
        limits = (self._max_items, self._max_bytes, quota_items, quota_bytes)
        more = (num_items, num_bytes, num_items, num_bytes)
        for what, now, added, limit in zip(_LIMITED, held, more, limits, strict=True):
            if now + added > limit:
                self.num_refused += 1
                raise OverloadError(
                    f"the reward service holds {now} {what} and would hold {now + added}; its limit is {limit}.",
                    retry_after_s=self._retry_after_s(),
                    fix="Wait and send it again, in smaller requests, or start more replicas.",
                )

    def _retry_after_s(self) -> float:
        wait_s = self.num_items / self._items_per_s if self._items_per_s else MIN_RETRY_S
        return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))


_LIMITED = ("items", "bytes of items", "items of this caller", "bytes of items of this caller")
