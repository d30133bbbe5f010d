"""`python -m crescendo.controller.operator`: the operator, one a cluster.

kopf watches (watch.py); everything else is ours: events of RLJobs and of their children make a job due, the queue
reconciles it, and a resync adds every job every `resync_s`. No finalizers and no annotations: owner references clean
up, and the status says all. Options come from the environment (options.py); health is at /healthz, metrics at /metrics.
"""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from crescendo.common.errors import CrescendoError
from crescendo.common.metrics import MetricsServer
from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.authority import load_authority, renew_platform
from crescendo.controller.operator.certificates import KeyPair
from crescendo.controller.operator.metrics import Counts
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.progress import ControllerRuns
from crescendo.controller.operator.queue import WorkQueue
from crescendo.controller.operator.reconcile import Reconciler
from crescendo.controller.operator.resource import KIND
from crescendo.controller.operator.shared_buffer import SharedBuffer, SharedBufferProblem
from crescendo.controller.operator.watch import Watch

log = logging.getLogger(__name__)


async def resync(api: KubernetesApi, queue: WorkQueue, counts: Counts, authority: KeyPair, options: Options) -> None:
    """Adds every job every so often: a lost event costs at most one interval. Renews the platform's certificates."""
    while True:
        try:
            await renew_platform(api, authority, options)
        except CrescendoError as error:
            log.warning("certificates: %s", error)
        try:
            await look(api, queue, counts, options)
        except CrescendoError as error:
            log.warning("resync: %s", error)
        await asyncio.sleep(options.resync_s)


async def look(api: KubernetesApi, queue: WorkQueue, counts: Counts, options: Options) -> None:
    """Adds every job, then removes the logins of those that are gone from the shared buffer."""
    shared, logins = SharedBuffer(options), []
    if options.shared_buffer_url:
        try:
            logins = await shared.logins()
        except SharedBufferProblem as problem:
            log.warning("resync: %s", problem)
    uids, statuses = set(), []
    for namespace in options.watch_namespaces or ("*",):
        for body in await api.find(KIND, namespace, {}):
            uids.add(str(body["metadata"]["uid"]))
            statuses.append(body.get("status") or {})
            queue.add(body["metadata"]["namespace"], body["metadata"]["name"])
    counts.saw(statuses)
    for name in await shared.sweep(logins, uids):
        log.info("login %s is removed from the shared buffer: its job is gone", name)


async def operate(options: Options) -> None:
    """Runs until SIGTERM or SIGINT, or until a part of it fails."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    kubeconfig, counts = os.environ.get("KUBECONFIG"), Counts()
    api = KubernetesApi(Path(kubeconfig) if kubeconfig else None)
    try:
        authority = await load_authority(api, options)
        await renew_platform(api, authority, options)
        queue = WorkQueue(counts.timed(Reconciler(api, ControllerRuns(), options, authority).reconcile))
        metrics = MetricsServer(lambda: counts.families(len(queue)))
        metrics.start("0.0.0.0", options.metrics_port or -1)
        watch = Watch(options, lambda namespace, name: loop.call_soon_threadsafe(queue.add, namespace, name))
        parts = [queue.run(), resync(api, queue, counts, authority, options), stop.wait()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        watch.start()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(watch.stop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        metrics.close()
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
