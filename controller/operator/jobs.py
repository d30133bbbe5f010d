"""RLJobs as a person handles them: submit, list, follow logs, suspend, resume, promote, delete.

Called by the command line for people who don't speak kubectl; uses the person's own kubeconfig.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from crescendo.common.errors import ConfigError, CrescendoError, DeadlineError
from crescendo.controller.operator.api import ApiFailure, KubernetesApi
from crescendo.controller.operator.obstacles import obstacle
from crescendo.controller.operator.promotion import later_stages
from crescendo.controller.operator.requests import ANNOTATION, Request
from crescendo.controller.operator.resource import COMPONENT_LABEL, JOB_LABEL, KIND, Job, Manifest

ANSWER_S: Final = 60.0
# Component and container of the pod that prints what the run says, which stays when it has ended, and of Ray's head.
RUN: Final = ("submitter", "ray-job-submitter")
HEAD: Final = ("head", "ray-head")
NO_LOG: Final = frozenset({400, 404, 500})  # it has not started, has gone, or its node does not answer


class Jobs:
    """The RLJobs of one namespace ("*": of all, for listing only)."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def submit(self, manifest: Manifest) -> Job:
        """Creates an RLJob; raises ConfigError when the API server refuses it, drops a field or has the name."""
        name = manifest["metadata"]["name"]
        manifest = {**manifest, "metadata": {**manifest["metadata"], "namespace": self._namespace}}
        try:
            # A field that the definition does not know is dropped without a word: a typo would count as a default.
            unknown = dropped(manifest["spec"], (await self._api.create_new(manifest, dry_run=True))["spec"], "spec")
            if unknown:
                raise ConfigError(
                    f"an RLJob has no {', '.join(unknown)}.",
                    field=unknown[0],
                    fix=f"Correct the spelling: kubectl explain rljob.{unknown[0].rpartition('.')[0]}",
                )
            return Job.from_body(await self._api.create_new(manifest))
        except ApiFailure as failure:
            if failure.code == 409:
                raise ConfigError(
                    f"there is an RLJob {self._namespace}/{name} already.",
                    field="metadata.name",
                    fix="Choose another --name, or delete that one.",
                ) from None
            if failure.code in (400, 422):
                raise ConfigError(failure.message, fix="Correct what it names.") from None
            raise

    async def list(self) -> list[Job]:
        """All jobs, by namespace and name."""
        found = map(Job.from_body, await self._api.find(KIND, self._namespace, {}))
        return sorted(found, key=lambda job: (job.namespace, job.name))

    async def get(self, name: str) -> Job:
        """One job; raises ConfigError when there is none."""
        body = await self._api.get(KIND, name, self._namespace)
        if body is None:
            await self._look_whether_served()
            raise ConfigError(
                f"there is no RLJob {name} in namespace {self._namespace}.", field="JOB", fix="See `crescendo get`."
            )
        return Job.from_body(body)

    async def obstacles(self, job: Job) -> tuple[str, ...]:
        """What keeps pods of a job from running, one line a pod; none where the person may not list pods."""
        try:
            pods = await self._api.find("Pod", job.namespace, {JOB_LABEL: job.name})
        except ApiFailure as failure:
            if failure.code == 403:
                return ()
            raise
        return tuple(f"{pod['metadata']['name']}: {why}" for pod in pods if (why := obstacle(pod)))

    async def suspend(self, name: str, suspended: bool) -> None:
        """Asks for a suspension, or for its end."""
        await self._set(name, {"suspend": suspended})

    async def promote(self, name: str, stage: str) -> str:
        """Asks for a later stage, the next when empty; returns its name."""
        job = await self.get(name)
        present = str((job.status.get("progress") or {}).get("stage", ""))
        later = later_stages(job, present)
        wanted = stage or (later[0] if later else "")
        if wanted not in later:
            raise ConfigError(
                f"stage {wanted or 'any'} does not follow {present or 'the beginning'}; later stages: "
                f"{', '.join(later) or 'none'}.",
                field="--stage",
                fix="Name a later stage, or none for the next.",
            )
        await self._set(name, {"promoteTo": wanted})
        return wanted

    async def ask(self, name: str, verb: str, engine: str = "") -> None:
        """Asks the run for a transient verb and waits for its answer.

        Raises ConfigError when the job does not run, the API server refuses the person (its message names the rule that
        is missing) or the controller refuses; DeadlineError when nobody answers.
        """
        job = await self.get(name)
        if not job.is_true("Running"):
            raise ConfigError(
                f"RLJob {name} does not run (phase {job.status.get('phase', 'unknown')}).",
                field="JOB",
                fix=f"See why: crescendo get {name}",
            )
        request = str(Request(verb, engine, secrets.token_hex(4)))
        try:
            change = {"metadata": {"annotations": {ANNOTATION: request}}}
            await self._api.merge(KIND, name, self._namespace, change)
        except ApiFailure as failure:
            if failure.code in (403, 422):
                raise ConfigError(failure.message, fix="Ask the cluster's administrator for the rule named.") from None
            raise
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            answer = (await self.get(name)).status.get("request") or {}
            if answer.get("text") == request:
                if answer["state"] == "Refused":
                    raise ConfigError(f"{verb} was refused: {answer['message']}.", field=verb)
                return
            await asyncio.sleep(0.5)
        raise DeadlineError(
            f"nobody answered to {verb} within {ANSWER_S:.0f} s.", fix="Is the operator up? It carries verbs out."
        )

    async def delete(self, name: str) -> None:
        """Deletes a job; its volumes stay if they are retained."""
        await self.get(name)
        await self._api.delete(KIND, name, self._namespace)

    async def logs(self, name: str, *, head: bool, follow: bool, lines: int) -> AsyncIterator[str]:
        """Lines of what the newest attempt's run says, or of its head pod."""
        job = await self.get(name)
        component, container = HEAD if head else RUN
        pods = await self._api.find("Pod", self._namespace, {JOB_LABEL: name, COMPONENT_LABEL: component})
        if not pods:
            raise CrescendoError(
                f"RLJob {name} has no {component} pod now (phase {job.status.get('phase', 'unknown')}).",
                fix=f"See why: crescendo get {name}",
            )
        pod = max(pods, key=lambda one: str(one["metadata"]["creationTimestamp"]))["metadata"]["name"]
        try:
            async for line in self._api.log(pod, self._namespace, container=container, follow=follow, lines=lines):
                yield line
        except ApiFailure as failure:
            if failure.code not in NO_LOG:
                raise
            raise CrescendoError(
                f"pod {pod} has no log now: {failure.message}", fix=f"See how far it is: crescendo get {name}"
            ) from None

    async def _look_whether_served(self) -> None:
        """Raises the ApiFailure of a cluster without the definition, which answers as it does for a name unknown."""
        try:
            await self._api.find(KIND, self._namespace, {})
        except ApiFailure as failure:
            if failure.code == 404:
                raise

    async def _set(self, name: str, fields: dict[str, Any]) -> None:
        await self.get(name)
        await self._api.merge(KIND, name, self._namespace, {"spec": fields})


def dropped(given: Any, stored: Any, path: str) -> list[str]:
    """Paths of what was given and is not stored."""
    if isinstance(given, dict) and isinstance(stored, dict):
        missing = [f"{path}.{name}" for name in given if name not in stored and given[name] is not None]
        pairs = [(given[name], stored[name], f"{path}.{name}") for name in given if name in stored]
    elif isinstance(given, list) and isinstance(stored, list):
        missing, pairs = [], [(one, other, path) for one, other in zip(given, stored, strict=False)]
    else:
        return []
    return [*missing, *(found for pair in pairs for found in dropped(*pair))]
