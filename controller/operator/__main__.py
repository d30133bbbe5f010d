"""`python -m crescendo.controller.operator`: the operator, one a cluster.

kopf watches; everything else is ours: events of RLJobs and of their children make a job due, the queue reconciles it,
and a resync adds every job every `resync_s`. No finalizers and no annotations: owner references clean up, and the
status says all. Options come from the environment (options.py); health is at /healthz.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import kopf

from crescendo.common.errors import CrescendoError
from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.authority import load_authority, renew_platform
from crescendo.controller.operator.certificates import KeyPair
from crescendo.controller.operator.crd import GROUP, PLURAL, VERSION
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.progress import ControllerRuns
from crescendo.controller.operator.queue import WorkQueue
from crescendo.controller.operator.reconcile import Reconciler
from crescendo.controller.operator.resource import JOB_LABEL, KIND

log = logging.getLogger(__name__)


def watched(queue: WorkQueue) -> kopf.OperatorRegistry:
    """kopf's handlers: each event makes a job due."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True
        settings.posting.enabled = False
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330

    @kopf.on.login(registry=registry)
    def login(**details: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**details) or kopf.login_with_kubeconfig(**details)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_changed(namespace: str | None, name: str | None, **_: Any) -> None:
        queue.add(str(namespace), str(name))

    @kopf.on.event("ray.io", "v1", "rayjobs", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    @kopf.on.event("ray.io", "v1", "rayclusters", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        queue.add(str(namespace), labels[JOB_LABEL])

    return registry


async def resync(api: KubernetesApi, queue: WorkQueue, authority: KeyPair, options: Options) -> None:
    """Adds every job every so often: a lost event costs at most one interval. Renews the platform's certificates."""
    while True:
        try:
            await renew_platform(api, authority, options)
        except CrescendoError as error:
            log.warning("certificates: %s", error)
        for namespace in options.watch_namespaces or ("*",):
            try:
                for body in await api.find(KIND, namespace, {}):
                    queue.add(body["metadata"]["namespace"], body["metadata"]["name"])
            except CrescendoError as error:
                log.warning("resync: %s", error)
        await asyncio.sleep(options.resync_s)


async def operate(options: Options) -> None:
    """Runs until cancelled or until kopf ends."""
    kubeconfig = os.environ.get("KUBECONFIG")
    api = KubernetesApi(Path(kubeconfig) if kubeconfig else None)
    try:
        authority = await load_authority(api, options)
        await renew_platform(api, authority, options)
        reconciler = Reconciler(api, ControllerRuns(), options, authority)
        queue = WorkQueue(reconciler.reconcile)
        tasks = [asyncio.create_task(queue.run()), asyncio.create_task(resync(api, queue, authority, options))]
        watching = kopf.operator(
            registry=watched(queue),
            namespaces=list(options.watch_namespaces),
            clusterwide=not options.watch_namespaces,
            liveness_endpoint=f"http://0.0.0.0:{options.health_port}/healthz" if options.health_port else None,
        )
        tasks.append(asyncio.create_task(watching))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
    finally:
        await api.close()


def main() -> int:
    """Starts the operator; exits 2 for bad options."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx2", "kopf.objects"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        options = Options.from_environment()
        asyncio.run(operate(options))
    except CrescendoError as error:
        print(f"crescendo operator: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
