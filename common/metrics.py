"""Prometheus metrics over HTTP, for every service that has some: what it counts anyway, read when a scraper asks.

A registry of its own for each server, so that two in one process (as in tests) do not meet.
"""

from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from crescendo.common.errors import EnvironmentProblem


class _Reader(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._read()


class MetricsServer:
    """`start` serves what `read` gives over HTTP, in a thread; `close` ends it. port: 0 when it is not served."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self.port = 0
        self._registry = CollectorRegistry()
        self._registry.register(_Reader(read))
        self._server: WSGIServer | None = None

    def start(self, host: str, port: int) -> None:
        """port: -1 serves nothing, 0 takes a free one. Raises EnvironmentProblem when it is in use."""
        if port < 0:
            return
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            raise EnvironmentProblem(
                f"metrics_port {port} on {host} cannot be used: {error}.",
                field="metrics_port",
                fix="Choose another port, 0 for a free one, or -1 for none.",
            ) from None
        self.port = self._server.server_port

    def close(self) -> None:
        """Ends the thread."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
