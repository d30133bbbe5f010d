"""Server side: a grpc.aio server with health checking, reflection, a bearer token and a graceful end."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.rpc.channel import OPTIONS

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# grpc's classes take type arguments in its stubs only, hence the quotes.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.")


class _TokenGuard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token; health and reflection stay open."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        is_open = handler_call_details.method.startswith(OPEN_METHODS)
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        if is_open or hmac.compare_digest(text.encode(), self._expected.encode()):
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        return _refusing(handler)


def _refusing(handler: Handler) -> Handler:
    async def refuse(_request: object, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong token")

    async def refuse_stream(request: object, context: Context) -> AsyncIterator[None]:
        await refuse(request, context)
        yield None

    if handler is None:
        return handler
    codec = (handler.request_deserializer, handler.response_serializer)
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream, *codec)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse, *codec)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream, *codec)
    return grpc.unary_unary_rpc_method_handler(refuse, *codec)


@dataclass
class Server:
    """A running server. address: host:port; `await stop()` drains and ends it."""

    grpc_server: grpc.aio.Server
    address: str
    health: health.aio.HealthServicer

    async def stop(self, grace_s: float = 5.0) -> None:
        """Reports NOT_SERVING, lets running calls end within grace_s, then ends."""
        await self.health.enter_graceful_shutdown()
        await self.grpc_server.stop(grace_s)


async def serve(
    register: Callable[[grpc.aio.Server], None],
    service_names: Sequence[str],
    *,
    token: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
) -> Server:
    """Starts a server; `register` adds the servicers, `service_names` are their full names.

    An empty token leaves the services open (the executor on loopback). Raises EnvironmentProblem when the
    port is taken.
    """
    interceptors = (_TokenGuard(token),) if token else ()
    # No SO_REUSEPORT: two servers on one port would share its calls silently.
    options = (*OPTIONS, ("grpc.so_reuseport", 0))
    server = grpc.aio.server(interceptors=interceptors, options=options)
    register(server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *service_names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*service_names, reflection.SERVICE_NAME, health.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise EnvironmentProblem(
            f"port {port} on {host} is in use.", field="port", fix="Choose another port, or 0 for a free one."
        )
    await server.start()
    return Server(server, f"{host}:{bound}", servicer)
