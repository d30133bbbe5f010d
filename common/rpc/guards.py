"""Who may call a server: the holder of the run's token on loopback, a certificate of the right role on a cluster.

Health checks and reflection stay open: probes have neither.
"""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc

from crescendo.common.rpc.identity import Identity, peer_identity
from crescendo.common.rpc.status import Context, let_finish_writing

# grpc's classes take type arguments in its stubs only, hence the quotes.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
# Says why a call is refused: its status code and message; None lets it pass.
Check: TypeAlias = Callable[[Context], "tuple[grpc.StatusCode, str] | None"]

OPEN_METHODS: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.")
PLATFORM: Final = "platform"


class TokenGuard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        handler = await continuation(handler_call_details)
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        if _is_open(handler_call_details) or hmac.compare_digest(text.encode(), self._expected.encode()):
            return handler
        return _checked(handler, lambda _: (grpc.StatusCode.UNAUTHENTICATED, "missing or wrong token"))


class IdentityGuard(grpc.aio.ServerInterceptor):
    """Refuses callers whose certificate is not of this job, or of the platform, with one of the roles.

    own: this server's identity; roles: which may call.
    """

    def __init__(self, own: Identity, roles: frozenset[str]) -> None:
        self._own = own
        self._roles = roles

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        return handler if _is_open(handler_call_details) else _checked(handler, self._refusal)

    def _refusal(self, context: Context) -> tuple[grpc.StatusCode, str] | None:
        peer = peer_identity(context.auth_context())
        if peer is None:
            return grpc.StatusCode.UNAUTHENTICATED, "the certificate carries no crescendo:// identity"
        if not may_call(self._own, peer, self._roles):
            return grpc.StatusCode.PERMISSION_DENIED, f"{peer.uri} may not call {self._own.uri}"
        return None


def may_call(own: Identity, peer: Identity, roles: frozenset[str]) -> bool:
    """Whether a peer's role may call this server, and whether they are of one job or one is the platform's."""
    related = (peer.namespace, peer.uid) == (own.namespace, own.uid) or PLATFORM in (peer.uid, own.uid)
    return peer.role in roles and related


def _is_open(details: grpc.HandlerCallDetails) -> bool:
    return details.method.startswith(OPEN_METHODS)


def _checked(handler: Handler, check: Check) -> Handler:
    """The handler behind a check that sees the call's context."""
    if handler is None:
        return handler
    inner: Any = handler

    async def refuse_if_needed(request: Any, context: Context) -> None:
        refusal = check(context)
        if refusal is not None:
            await let_finish_writing(request)
            await context.abort(*refusal)

    async def unary(request: Any, context: Context) -> Any:
        await refuse_if_needed(request, context)
        return await (inner.stream_unary if handler.request_streaming else inner.unary_unary)(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        await refuse_if_needed(request, context)
        async for answer in (inner.stream_stream if handler.request_streaming else inner.unary_stream)(
            request, context
        ):
            yield answer

    codec = (handler.request_deserializer, handler.response_serializer)
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, *codec)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(unary, *codec)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, *codec)
    return grpc.unary_unary_rpc_method_handler(unary, *codec)
