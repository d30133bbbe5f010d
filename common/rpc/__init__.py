"""gRPC as every service uses it: clients, servers, deadlines, health, authentication, typed errors."""

from crescendo.common.rpc.channel import Client, Endpoint
from crescendo.common.rpc.server import Server, serve
from crescendo.common.rpc.status import from_detail, guarded, guarded_stream, to_detail, to_error

__all__ = [
    "Client",
    "Endpoint",
    "Server",
    "from_detail",
    "guarded",
    "guarded_stream",
    "serve",
    "to_detail",
    "to_error",
]
