"""Ray as the run uses it: a local or given cluster, its devices, placement of service actors, and their end.

`reserve` takes the devices of a layout and waits for them: the operator's worker pods come and go with the stages
(nodes.py). On GPUs they are the bundles of a placement group, the trainer's first; on cores nothing is reserved.
Trainer and engines find their own nodes by the resource that names their group when they are apart.
"""

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from crescendo.common.config.layouts import Layout
from crescendo.common.errors import CrescendoError, DeadlineError, EnvironmentProblem, WorkerLostError, WorkerStartError
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch import nodes
from crescendo.controller.launch.actor import ServiceActor

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 << 20  # nothing large travels through Ray
INIT_ATTEMPTS = 3  # Ray gives its own processes 30 s, too little on an overloaded machine
OWN_PROCESSES = ("raylet", "gcs_server")
TRAINER_SHARE = 0.4  # of a shared GPU, for Ray's book-keeping only
ENGINE_SHARE = 0.4
LOOK_EVERY_S = 0.5
SURPLUS_S = 120.0  # for pods to go; after that they may as well be used


@dataclass
class ActorHandle:
    """A placed service actor."""

    actor: Any
    address: str
    pid: int


class Cluster:
    """A connection to Ray. `RAY_ADDRESS` names an existing cluster (KubeRay's head); else one is started here."""

    def __init__(self, uses_gpu: bool) -> None:
        self._uses_gpu = uses_gpu
        self._layout: Layout | None = None  # whose devices are reserved
        self._group: PlacementGroup | None = None
        self._markers: dict[str, dict[str, float]] = {}  # resources that take a role to its own nodes
        self._own: list[psutil.Process] = []  # raylet and gcs_server, when they were started here

    @property
    def is_local(self) -> bool:
        """Whether Ray was started here, so that its process ids mean something on this machine."""
        return bool(self._own)

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called, and `shutdown` not since."""
        return bool(ray.is_initialized())

    def why_lost(self) -> str:
        """What is wrong with Ray's own processes, as far as they run here; empty when they are well."""
        for process in self._own:
            try:
                state = process.status()
            except psutil.NoSuchProcess:
                state = psutil.STATUS_DEAD
            if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED):
                return f"Ray's process {process.pid} is {state}"
        return ""

    async def connect(self, scratch: Path, deadline_s: float) -> None:
        """Connects or starts Ray; raises EnvironmentProblem."""
        await asyncio.wait_for(asyncio.to_thread(self._init, scratch), deadline_s)
        if "RAY_ADDRESS" not in os.environ:
            self._own = [one for one in psutil.Process().children(recursive=True) if _name(one) in OWN_PROCESSES]

    async def reserve(self, layout: Layout, deadline_s: float, *, grows: bool = False) -> None:
        """Takes a layout's devices in place of those held before, whose actors have ended; waits until they are there.

        grows: on a cluster of the operator pods come and go with the stages.

        Raises EnvironmentProblem on a machine that has too few, DeadlineError on a cluster that stays too small.
        """
        if self._layout is not None and layout.same_devices(self._layout):
            return
        if self._group is not None:
            await asyncio.to_thread(remove_placement_group, self._group)
        self._layout, self._group = None, None
        if grows:
            await self._await_pods(layout, deadline_s)
        known = await asyncio.to_thread(ray.cluster_resources) if layout.rollout_devices else {}
        self._markers = {role: {group: 1.0} for role, group in nodes.GROUPS.items() if nodes.GROUPS["rollout"] in known}
        if self._uses_gpu:
            group = placement_group(self._bundles(layout), strategy="PACK")
            if not await asyncio.to_thread(group.wait, deadline_s):
                await asyncio.to_thread(remove_placement_group, group)
                raise self._too_small(layout, deadline_s)
            self._group = group
        self._layout = layout

    async def _await_pods(self, layout: Layout, deadline_s: float) -> None:
        """Waits until the operator has given what the layout needs and has taken the rest away."""
        begun = time.monotonic()
        while True:
            alive = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
            found, waited_s = nodes.sizes(alive, layout, on_gpus=self._uses_gpu), time.monotonic() - begun
            lacking, leaving = nodes.missing(found), nodes.surplus(found)
            if leaving and waited_s > SURPLUS_S:
                log.warning("%s have not gone after %.0f s; they are used", leaving, waited_s)
                leaving = ""
            if not lacking and not leaving:
                return
            if lacking and waited_s > deadline_s:
                raise DeadlineError(
                    f"{lacking} have not come after {waited_s:.0f} s.",
                    field="deadlines.devices_s",
                    fix="See why (`kubectl describe pod`, quota, free nodes), or raise the deadline.",
                )
            await asyncio.sleep(LOOK_EVERY_S)

    def _bundles(self, layout: Layout) -> list[dict[str, float]]:
        """One a device, the trainer's first. Two processors: a shared device counts one for each of the two."""
        roles = ["trainer"] * (layout.devices - layout.rollout_devices) + ["rollout"] * layout.rollout_devices
        return [{"GPU": 1, "CPU": 2, **self._markers.get(role, {})} for role in roles]

    def _too_small(self, layout: Layout, deadline_s: float) -> CrescendoError:
        text = f"Ray has not {layout.devices} free GPUs"
        if self.is_local:
            fix = "Lower placement.num_devices or free GPUs; `ray status` shows them."
            return EnvironmentProblem(f"{text}.", field="placement.num_devices", fix=fix)
        fix = "See why worker pods do not come (`ray status` on the head, quota), or raise deadlines.devices_s."
        return DeadlineError(f"{text} after {deadline_s:.0f} s.", field="deadlines.devices_s", fix=fix)

    def _init(self, scratch: Path) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's workers would otherwise run at niceness 15, behind everything else on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {}
        if address is None:
            # More than the cores: actors here share them by lease, not by Ray's count.
            local = {
                "num_cpus": 16,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(scratch),
            }
        for attempt in range(1, INIT_ATTEMPTS + 1):
            try:
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="crescendo", **local
                )
            except Exception as error:
                ray.shutdown()
                if attempt == INIT_ATTEMPTS:
                    raise EnvironmentProblem(
                        f"Ray did not start: {error}", fix="See `crescendo doctor`; is memory or /dev/shm short?"
                    ) from error
                log.warning("Ray did not start (attempt %d): %s", attempt, error)
            else:
                return

    async def place(self, spec: ServiceSpec, *, bundle: int) -> Any:
        """Makes the actor of a service, which is not started yet. bundle: index of the device it works on.

        Raises WorkerLostError when Ray is lost.
        """
        if why := self.why_lost():
            raise WorkerLostError(f"{spec.worker_id} cannot be placed: {why}.")
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 64}
        if self._group is not None:
            shares = {"trainer": TRAINER_SHARE, "rollout": ENGINE_SHARE}
            spans_bundles = int(spec.options.get("tensor_parallel", "1")) > 1 and spec.role == "rollout"
            options["num_gpus"] = 0 if spans_bundles else shares[spec.role]
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=True
            )
        else:
            options["resources"] = self._markers.get(spec.role, {})
        # In a thread, because Ray's client blocks while Ray does not answer, and the controller must not.
        return await asyncio.to_thread(lambda: ray.remote(ServiceActor).options(**options).remote())

    def spanned(self, first: int, count: int) -> dict[str, str]:
        """What an engine is told whose workers live in several bundles: which these are, and its share of each GPU."""
        if count == 1 or self._group is None:
            return {}
        return {"bundles": ",".join(map(str, range(first, first + count))), "device_share": str(ENGINE_SHARE)}

    async def rendezvous(self, actor: Any, deadline_s: float) -> str:
        """host:port where a gang meets whose rank 0 the placed actor is to be; raises WorkerStartError."""
        try:
            return str(await asyncio.wait_for(_result(actor.rendezvous.remote()), deadline_s))
        except TimeoutError:
            self.kill(actor)
            raise WorkerStartError(
                f"the trainer's rank 0 was not placed within {deadline_s:.0f} s.",
                field="deadlines.start_s",
                fix="See whether the cluster has room: `ray status` on its head.",
            ) from None

    async def start(self, spec: ServiceSpec, *, bundle: int, deadline_s: float, actor: Any = None) -> ActorHandle:
        """Places an actor, unless it is given, and starts its service.

        Raises WorkerLostError when Ray is lost, WorkerStartError when the service does not come up.
        """
        actor = actor or await self.place(spec, bundle=bundle)
        try:
            address = await asyncio.wait_for(_result(actor.start.remote(spec.to_json())), deadline_s)
            pid = await asyncio.wait_for(_result(actor.process_id.remote()), deadline_s)
        except TimeoutError:
            self.kill(actor)
            raise WorkerStartError(
                f"{spec.worker_id} was not ready within {deadline_s:.0f} s.",
                field="deadlines.start_s",
                fix=f"See logs/{spec.worker_id}.log in the run folder; raise deadlines.start_s if it was only slow.",
            ) from None
        except BaseException:
            self.kill(actor)
            raise
        return ActorHandle(actor, address, pid)

    def kill(self, actor: Any) -> None:
        """Ends an actor's process at once; when Ray is lost its actors end by themselves."""
        if self.why_lost():
            return
        try:
            ray.kill(actor, no_restart=True)
        except (ValueError, ray.exceptions.RayError) as error:
            log.warning("an actor could not be killed: %s", error)

    async def answers(self, handle: ActorHandle, timeout_s: float) -> bool:
        """Whether an actor's event loop runs; for a rank that serves no gRPC."""
        try:
            await asyncio.wait_for(_result(handle.actor.process_id.remote()), timeout_s)
        except (CrescendoError, TimeoutError):
            return False
        return True

    async def stop(self, handle: ActorHandle, grace_s: float) -> None:
        """Drains the actor's service, then ends its process."""
        try:
            await asyncio.wait_for(_result(handle.actor.stop.remote(grace_s)), grace_s + 5)
        except (CrescendoError, TimeoutError) as error:
            log.warning("an actor did not drain: %s", error)
        await asyncio.to_thread(self.kill, handle.actor)

    async def shutdown(self) -> None:
        """Ends what was started here, the local Ray cluster included; a stopped process of it is killed."""
        for process in self._own:
            if _name(process) and process.status() == psutil.STATUS_STOPPED:
                process.kill()
        await asyncio.to_thread(ray.shutdown)
        self._own, self._group, self._layout = [], None, None


def _name(process: psutil.Process) -> str:
    """Its name; empty when it has ended."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


async def _result(reference: Any) -> Any:
    """Awaits a Ray call; what the actor raised comes out as itself, a dead actor as WorkerLostError."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, CrescendoError) else None
        raise cause or WorkerStartError(str(error).strip().splitlines()[-1]) from error
    except ray.exceptions.RayActorError as error:
        raise WorkerLostError(f"the process ended: {str(error).strip().splitlines()[0]}") from error
