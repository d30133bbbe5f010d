"""Server side: a grpc.aio server with health checking, reflection, a guard and a graceful end.

On loopback a token guards it; with an identity (rpc/identity.py) it listens on the pod's address with mTLS, and the
caller's role decides.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.rpc.channel import OPTIONS
from crescendo.common.rpc.decoding import DecodingGuard
from crescendo.common.rpc.guards import IdentityGuard, TokenGuard
from crescendo.common.rpc.identity import IdentityFiles

LOOPBACK: Final = "127.0.0.1"
ADDRESS_VARIABLE: Final = "POD_IP"


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
    roles: frozenset[str] = frozenset({"controller"}),
    port: int = 0,
    open_host: str = "",
) -> Server:
    """Starts a server; `register` adds the servicers, `service_names` are their full names.

    Without an identity: on loopback, guarded by the token; an empty one leaves it open (the executor). With one: on
    POD_IP, and callers of these roles only. open_host: listen there, in the clear and open to all who reach it (the
    executor, which holds no key). Raises EnvironmentProblem when the port is taken.
    """
    files = None if open_host else IdentityFiles.from_environment()
    host = open_host or (LOOPBACK if files is None else os.environ.get(ADDRESS_VARIABLE, LOOPBACK))
    interceptors: tuple[grpc.aio.ServerInterceptor, ...] = (TokenGuard(token),) if token else ()
    if files is not None:
        interceptors = (IdentityGuard(files.own(), roles),)
    # No SO_REUSEPORT: two servers on one port would share its calls silently.
    options = (*OPTIONS, ("grpc.so_reuseport", 0))
    server = grpc.aio.server(interceptors=(*interceptors, DecodingGuard()), options=options)
    register(server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *service_names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*service_names, reflection.SERVICE_NAME, health.SERVICE_NAME), server)
    try:
        if files is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", files.server_credentials())
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise EnvironmentProblem(
            f"port {port} on {host} is in use.", field="port", fix="Choose another port, or 0 for a free one."
        )
    await server.start()
    return Server(server, f"{host}:{bound}", servicer)
