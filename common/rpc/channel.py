"""Client side: an endpoint, and a client whose calls have a deadline and typed errors."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from crescendo.common.rpc.identity import SERVER_NAME, IdentityFiles
from crescendo.common.rpc.status import to_error

MAX_MESSAGE_BYTES = 1 << 30
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    # A service that is back after minutes is reached within seconds; grpc's own limit is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)
FIRST_BACKOFF_S = 0.1

StubT = TypeVar("StubT")
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Endpoint:
    """Where a service listens and what opens it. address: host:port or unix:path; is_open: it has no identity."""

    address: str
    token: str = ""
    is_open: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Call metadata that carries the token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def open_channel(address: str, *, is_open: bool = False, max_answer_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel: in the clear on loopback, by mTLS where this process has an identity; is_open: in the clear anyway."""
    files = None if is_open else IdentityFiles.from_environment()
    # Of an option that is named twice, grpc takes the first.
    options: tuple[tuple[str, int | str], ...] = (("grpc.max_receive_message_length", max_answer_bytes), *OPTIONS)
    if files is None:
        return grpc.aio.insecure_channel(address, options=options)
    # Pods are reached by address; every certificate of the authority carries this name beside its identity.
    options = (*options, ("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.aio.secure_channel(address, files.channel_credentials(), options=options)


class Client(Generic[StubT]):
    """A channel to one endpoint with its typed stub: `Client(endpoint, RolloutServiceStub)`.

    Lives on the event loop that made it; `await client.close()` ends it. When this process's certificate was renewed,
    the next call takes a new channel: the old one could not connect again once its own certificate has run out.
    """

    def __init__(
        self, endpoint: Endpoint, stub_type: Callable[[Any], StubT], *, max_answer_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self.endpoint = endpoint
        self._stub_type, self._max_answer_bytes = stub_type, max_answer_bytes
        self._identity = None if endpoint.is_open else IdentityFiles.from_environment()
        self._former: list[grpc.aio.Channel] = []
        self._connect()

    @property
    def stub(self) -> StubT:
        """The typed stub, on a channel with the present certificate; what runs on an older one goes on there."""
        if self._identity is not None and self._identity.stamp() not in (0, self._stamp):
            self._former.append(self._channel)
            self._connect()
        return self._stub

    def _connect(self) -> None:
        self._stamp = self._identity.stamp() if self._identity is not None else 0
        address, is_open = self.endpoint.address, self.endpoint.is_open
        self._channel = open_channel(address, is_open=is_open, max_answer_bytes=self._max_answer_bytes)
        self._stub: StubT = self._stub_type(self._channel)

    async def call(self, method: Callable[..., Any], request: Q, *, timeout_s: float, attempts: int = 1) -> Any:
        """Calls a unary method; retryable errors are tried again with back-off within the deadline.

        Raises a CrescendoError: what the service said, WorkerLostError or DeadlineError.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        backoff_s = FIRST_BACKOFF_S
        for attempt in range(1, attempts + 1):
            remaining_s = deadline - asyncio.get_running_loop().time()
            try:
                return await method(request, timeout=max(0.001, remaining_s), metadata=self.endpoint.metadata)
            except grpc.RpcError as failure:
                error = to_error(failure)
                wait_s = max(error.retry_after_s, backoff_s * random.uniform(0.5, 1.5))
                out_of_time = asyncio.get_running_loop().time() + wait_s > deadline
                if not error.retryable or attempt == attempts or out_of_time:
                    raise error from None
                await asyncio.sleep(wait_s)
                backoff_s *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def stream(self, method: Callable[..., Any], request: Any, *, timeout_s: float) -> AsyncIterator[Any]:
        """Calls a streaming method (request: a message, or an async iterator of them) and yields its answers."""
        try:
            async for answer in method(request, timeout=timeout_s, metadata=self.endpoint.metadata):
                yield answer
        except grpc.RpcError as failure:
            raise to_error(failure) from None

    async def close(self) -> None:
        """Ends the channels; running calls are cancelled."""
        for channel in (self._channel, *self._former):
            await channel.close()


__all__ = ["MAX_MESSAGE_BYTES", "OPTIONS", "Client", "Endpoint"]
