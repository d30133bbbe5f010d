"""kopf's watch over RLJobs and their children: each event makes a job due.

It has a thread and an event loop of its own, because kopf ends at some answers of the API server (a watch refused with
410 Gone, an error within a stream) and, when it ends, cancels what else runs in its loop. It is then started again;
the resync (__main__.py) covers what happened in between. Health is kopf's, at /healthz.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final

import kopf

from crescendo.controller.operator.crd import GROUP, PLURAL, VERSION
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import JOB_LABEL

log = logging.getLogger(__name__)

PAUSE_S: Final = 2.0
STOP_S: Final = 5.0
SERVER_TIMEOUT_S: Final = 300

Due = Callable[[str, str], object]


class Watch:
    """Runs between `start` and `stop`. due: called with namespace and name, in the watch's thread."""

    def __init__(self, options: Options, due: Due) -> None:
        self._options = options
        self._registry = _handlers(due)
        self._stopped: futures.Future[None] = futures.Future()
        self._stopped.set_running_or_notify_cancel()  # so that a loop that ends does not cancel it
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; waits for it a few seconds at most."""
        self._stopped.set_result(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopped.done():
            try:
                asyncio.run(self._watch_once())
            except Exception as error:  # noqa: BLE001  whatever ended it, the next watch lists everything anew
                log.warning("the watch ended: %s: %s; again in %.0f s", type(error).__name__, error, PAUSE_S)
            futures.wait([self._stopped], PAUSE_S)

    async def _watch_once(self) -> None:
        options = self._options
        await kopf.operator(
            registry=self._registry,
            namespaces=list(options.watch_namespaces),
            clusterwide=not options.watch_namespaces,
            liveness_endpoint=f"http://0.0.0.0:{options.health_port}/healthz" if options.health_port else None,
            stop_flag=asyncio.wrap_future(self._stopped),
        )


def _handlers(due: Due) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True
        settings.scanning.disabled = True  # of every CustomResourceDefinition, which the chart's role does not allow
        settings.posting.enabled = False
        settings.watching.server_timeout = SERVER_TIMEOUT_S
        settings.watching.client_timeout = SERVER_TIMEOUT_S + 30

    @kopf.on.login(registry=registry)
    def login(**details: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**details) or kopf.login_with_kubeconfig(**details)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_changed(namespace: str | None, name: str | None, **_: Any) -> None:
        due(str(namespace), str(name))

    @kopf.on.event("ray.io", "v1", "rayjobs", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    @kopf.on.event("ray.io", "v1", "rayclusters", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        due(str(namespace), labels[JOB_LABEL])

    return registry
