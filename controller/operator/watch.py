"""kopf's watch over RLJobs and their children: each event that a decision could turn on makes a job due.

What is written often and decides nothing (the operator's own status, KubeRay's heartbeats) is passed over: of each
object the watch keeps what the plan reads of it, and an event that leaves that as it was is none.

It has a thread and an event loop of its own, because kopf ends at some answers of the API server (a watch refused with
410 Gone, an error within a stream) and, when it ends, cancels what else runs in its loop. It is then started again;
the resync (__main__.py) covers what happened in between. Health is kopf's, at /healthz.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Mapping, Set
from concurrent import futures
from typing import Any, Final

import kopf

from crescendo.controller.operator.crd import GROUP, PLURAL, VERSION
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import JOB_LABEL, Attempt, Cluster

log = logging.getLogger(__name__)

PAUSE_S: Final = 2.0
STOP_S: Final = 5.0
KOPFS_END_S: Final = 7.0
"""kopf gives its own tasks 5 s to end before it cancels them."""
SERVER_TIMEOUT_S: Final = 300

Due = Callable[[str, str], object]


class Watch:
    """Runs between `start` and `stop`. due: called with namespace and name, in the watch's thread."""

    def __init__(self, options: Options, due: Due) -> None:
        self._options = options
        self._due = due
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
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  the next watch lists everything anew
                log.warning("the watch ended: %s: %s; again in %.0f s", type(error).__name__, error, PAUSE_S)
            futures.wait([self._stopped], PAUSE_S)

    async def _watch_once(self) -> None:
        options, before = self._options, asyncio.all_tasks()
        parts = await kopf.spawn_tasks(
            registry=_handlers(self._due),  # a new watch remembers nothing: all that it lists is due
            namespaces=list(options.watch_namespaces),
            clusterwide=not options.watch_namespaces,
            liveness_endpoint=f"http://0.0.0.0:{options.health_port}/healthz" if options.health_port else None,
            stop_flag=asyncio.wrap_future(self._stopped),
        )
        whole = asyncio.ensure_future(kopf.run_tasks(parts, ignored=before))
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([whole], timeout=KOPFS_END_S)
        await _cancel_until_gone(before | {whole})
        await whole


async def _cancel_until_gone(spared: Set[asyncio.Task[Any]]) -> None:
    """Cancels what outlived kopf, again and again.

    A watch whose connection kopf closed waits for new credentials, which nobody gives once kopf ends. It then takes a
    cancellation for the end of its pause and begins anew, if the task that waits for that pause was cancelled a moment
    before it. Hence the changing order, in which each round ends half of them. Nothing is healthy meanwhile: should
    this never end, the liveness probe does.
    """
    while left := list(asyncio.all_tasks() - spared):
        random.shuffle(left)
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.5)


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

    changes = Changes()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_changed(event: kopf.RawEvent, **_: Any) -> None:
        if changes.tells(event, wishes):
            about = event["object"]["metadata"]
            due(about["namespace"], about["name"])

    def child(plural: str, what: Callable[[Mapping[str, Any]], object]) -> None:
        @kopf.on.event("ray.io", "v1", plural, labels={JOB_LABEL: kopf.PRESENT}, registry=registry, id=plural)
        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            if changes.tells(event, what):
                about = event["object"]["metadata"]
                due(about["namespace"], about["labels"][JOB_LABEL])

    child("rayjobs", Attempt.from_body)
    child("rayclusters", Cluster.from_body)
    return registry


def wishes(body: Mapping[str, Any]) -> object:
    """What people may change of an RLJob; its status is the operator's own."""
    about = body["metadata"]
    return about.get("generation"), about.get("annotations"), "deletionTimestamp" in about


class Changes:
    """What was last seen of each object, by its uid."""

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}

    def tells(self, event: Mapping[str, Any], what: Callable[[Mapping[str, Any]], object]) -> bool:
        """Whether an event is news. what: of a body, all that a decision could turn on."""
        body = event["object"]
        uid = body["metadata"]["uid"]
        if event["type"] == "DELETED":
            self._seen.pop(uid, None)
            return True
        found = what(body)
        if uid in self._seen and self._seen[uid] == found:
            return False
        self._seen[uid] = found
        return True
