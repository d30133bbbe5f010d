"""RLJobs, their pods and events, as one person may see and change them.

Every call carries the person's own token, so the API server's rules decide, not the console's. The console's service
account only asks whose token it is (TokenReview).
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.core.resource_registry import resource_registry
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType

from crescendo.common.errors import CrescendoError, EnvironmentProblem

TIMEOUT_S: Final = 15.0
MAX_REVIEWS: Final = 8
GROUP: Final = "rl.crescendo.dev"
JOB_LABEL: Final = f"{GROUP}/job"
EVERYWHERE: Final = "*"
_NO_CLUSTER: Final = "Run the console in a pod with a service account's token, or set KUBECONFIG."
_SERVICE_ACCOUNT: Final = "system:serviceaccount:"


def _core(kind: str, plural: str) -> Any:
    """A kind of the core group, which lightkube would not make twice in a process: it looks under another key."""
    return resource_registry.get("v1", kind) or create_namespaced_resource("", "v1", kind, plural)


_JOBS: Final[Any] = create_namespaced_resource(GROUP, "v1alpha1", "RLJob", "rljobs")
_PODS: Final[Any] = _core("Pod", "pods")
_EVENTS: Final[Any] = _core("Event", "events")
_TOKEN_REVIEW: Final[Any] = create_global_resource("authentication.k8s.io", "v1", "TokenReview", "tokenreviews")
_ACCESS_REVIEW: Final[Any] = create_global_resource(
    "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"
)
Manifest = dict[str, Any]


class ClusterRefusal(CrescendoError):
    """The API server's answer was no. code: HTTP status; 0: it could not be reached."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Person:
    """Who a token belongs to."""

    name: str
    token: str = field(repr=False)

    @property
    def home(self) -> str:
        """A service account's namespace; empty for people."""
        account = self.name.removeprefix(_SERVICE_ACCOUNT)
        return account.partition(":")[0] if account != self.name else ""


@dataclass(frozen=True)
class Right:
    """verb on a resource ("rljobs", "rljobs/pause", "pods/log"; of the core group when it has no group)."""

    verb: str
    resource: str
    group: str = GROUP


class Reader(Protocol):
    """The cluster as one person sees it."""

    async def jobs(self, namespace: str) -> list[Manifest]: ...
    async def job(self, namespace: str, name: str) -> Manifest: ...
    async def pods(self, namespace: str, name: str) -> list[Manifest]: ...
    async def events(self, namespace: str, uid: str) -> list[Manifest]: ...
    async def may(self, namespace: str, rights: Collection[Right]) -> frozenset[Right]: ...
    async def change(self, namespace: str, name: str, patch: Manifest) -> None: ...
    async def close(self) -> None: ...


class Doorkeeper:
    """Says whose token it is, with the console's own rights. A few questions at a time."""

    def __init__(self) -> None:
        self._client: Any = AsyncClient(config=_cluster(), trust_env=False)
        self._turns = asyncio.Semaphore(MAX_REVIEWS)

    async def admit(self, token: str) -> Person | None:
        """The token's owner; None when the API server does not know it."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}}
        async with self._turns:
            answer = await _asked(self._client.create(_TOKEN_REVIEW({**review, "spec": {"token": token}})))
        status: Mapping[str, Any] = answer.get("status") or {}
        if not status.get("authenticated"):
            return None
        return Person(str((status.get("user") or {}).get("username", "")), token)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()


class JobReader:
    """The cluster through the API server; made for one request."""

    def __init__(self, person: Person) -> None:
        config = KubeConfig.from_one(cluster=_cluster().cluster, user=User(token=person.token))
        self._client: Any = AsyncClient(config=config, trust_env=False, field_manager="crescendo-console")

    async def jobs(self, namespace: str) -> list[Manifest]:
        """All RLJobs of a namespace, or EVERYWHERE."""
        return await self._list(_JOBS, namespace, {})

    async def job(self, namespace: str, name: str) -> Manifest:
        """One RLJob."""
        return dict(await _asked(self._client.get(_JOBS, name, namespace=namespace)))

    async def pods(self, namespace: str, name: str) -> list[Manifest]:
        """The pods of a job."""
        return await self._list(_PODS, namespace, {JOB_LABEL: name})

    async def events(self, namespace: str, uid: str) -> list[Manifest]:
        """The events on a job, in no order."""
        return await self._list(_EVENTS, namespace, {}, {"involvedObject.uid": uid})

    async def may(self, namespace: str, rights: Collection[Right]) -> frozenset[Right]:
        """Which of these rights the person has in a namespace, or EVERYWHERE: a SelfSubjectAccessReview each."""
        answers = await asyncio.gather(*(self._has(namespace, right) for right in rights))
        return frozenset(right for right, holds in zip(rights, answers, strict=True) if holds)

    async def change(self, namespace: str, name: str, patch: Manifest) -> None:
        """Merges a patch into a job."""
        await _asked(self._client.patch(_JOBS, name, patch, namespace=namespace, patch_type=PatchType.MERGE))

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _has(self, namespace: str, right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        asked = {
            "namespace": "" if namespace == EVERYWHERE else namespace,
            "group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb,
        }  # fmt: skip
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {}}
        answer = await _asked(self._client.create(_ACCESS_REVIEW({**review, "spec": {"resourceAttributes": asked}})))
        return bool((answer.get("status") or {}).get("allowed"))

    async def _list(
        self, kind: Any, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        async def collect() -> list[Manifest]:
            items = self._client.list(kind, namespace=namespace, labels=dict(labels), fields=dict(fields or {}))
            return [dict(item) async for item in items]

        found: list[Manifest] = await _asked(collect())
        return found


def _cluster() -> SingleConfig:
    """Where the API server is: of the pod's service account, or of KUBECONFIG; raises EnvironmentProblem."""
    try:
        found = KubeConfig.from_env().get()
    except ConfigError as error:
        raise EnvironmentProblem(f"no cluster to talk to: {error}", field="KUBECONFIG", fix=_NO_CLUSTER) from None
    if found is None:
        raise EnvironmentProblem("the configuration has no current context.", field="KUBECONFIG", fix=_NO_CLUSTER)
    return found


async def _asked(call: Any) -> Any:
    try:
        return await asyncio.wait_for(call, TIMEOUT_S)
    except ApiError as error:
        raise ClusterRefusal(str(error), error.response.status_code if error.response is not None else 0) from None
    except (httpx2.HTTPError, OSError, TimeoutError) as error:
        raise ClusterRefusal(f"the API server cannot be reached: {error}", 0) from None
