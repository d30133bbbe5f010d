"""The API server as the operator uses it: plain JSON in and out, server-side apply, typed refusals.

The one file that imports lightkube. Every kind is a generic resource, so that a field which a client library does not
know yet is neither dropped nor invented. Calls carry a time-out; what passes (an overloaded or restarting server) is
tried again within it, since every call but `create_new` may be repeated; what fails is an ApiFailure with the status.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ConfigError
from lightkube.core.resource_registry import resource_registry
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import CascadeType, PatchType

from crescendo.common.errors import CrescendoError
from crescendo.controller.operator.crd import GROUP, PLURAL, VERSION
from crescendo.controller.operator.resource import KIND, Manifest

FIELD_MANAGER: Final = "crescendo-operator"
TIMEOUT_S: Final = 20.0
PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
UNAUTHORIZED: Final = 401
_PASSING: Final = frozenset({0, 429, 500, 502, 503, 504})

_KINDS: Final = {
    KIND: (GROUP, VERSION, PLURAL),
    "RayJob": ("ray.io", "v1", "rayjobs"),
    "RayCluster": ("ray.io", "v1", "rayclusters"),
    "Pod": ("", "v1", "pods"),
    "Secret": ("", "v1", "secrets"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Service": ("", "v1", "services"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
    "StatefulSet": ("apps", "v1", "statefulsets"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "Certificate": ("cert-manager.io", "v1", "certificates"),
    "CertificateRequest": ("cert-manager.io", "v1", "certificaterequests"),
    "Workload": ("kueue.x-k8s.io", "v1beta2", "workloads"),
    "Event": ("events.k8s.io", "v1", "events"),
}


def _resource(group: str, version: str, kind: str, plural: str) -> Any:
    """A kind; one of the core group lightkube would not make twice in a process: it looks under another key."""
    made = resource_registry.get(f"{group}/{version}".strip("/"), kind)
    return made or create_namespaced_resource(group, version, kind, plural)


_RESOURCES: Final[dict[str, Any]] = {
    kind: _resource(group, version, kind, plural) for kind, (group, version, plural) in _KINDS.items()
}


class ApiFailure(CrescendoError):
    """The API server refused or could not be reached. code: HTTP status; 0: no answer; retry_after_s: its wish."""

    retryable = True

    def __init__(self, message: str, code: int, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class Api(Protocol):
    """What reconcile.py asks of the API server. Names are of one namespace; manifests name their own."""

    async def get(self, kind: str, name: str, namespace: str) -> Manifest | None: ...
    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]: ...
    async def apply(self, manifest: Manifest) -> Manifest: ...
    async def create(self, manifest: Manifest) -> None: ...
    async def delete(self, kind: str, name: str, namespace: str) -> None: ...
    async def put_status(self, name: str, namespace: str, version: str, status: Manifest) -> None: ...
    async def patch(self, kind: str, name: str, namespace: str, operations: list[Manifest]) -> None: ...


class KubernetesApi:
    """Api over lightkube. kubeconfig: None uses the pod's service account, or KUBECONFIG."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        self._client: Any = AsyncClient(config=config, field_manager=FIELD_MANAGER, trust_env=False)

    @property
    def namespace(self) -> str:
        """The kubeconfig's, or the pod's own."""
        return str(self._client.namespace)

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self._client.config.cluster.server)

    async def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """The object, or None."""
        try:
            return dict(await self._do(lambda: self._client.get(_RESOURCES[kind], name, namespace=namespace)))
        except ApiFailure as failure:
            if failure.code == 404:
                return None
            raise

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """All objects of a kind with these labels; namespace "*" is every one."""

        async def collect() -> list[Manifest]:
            items = self._client.list(_RESOURCES[kind], namespace=namespace, labels=dict(labels), chunk_size=500)
            return [{**item, "kind": kind} async for item in items]

        found: list[Manifest] = await self._do(collect)
        return found

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: we own the fields that the manifest names, by force."""
        resource: Any = _RESOURCES[manifest["kind"]].from_dict(manifest)
        metadata = manifest["metadata"]

        def call() -> Awaitable[Any]:
            found: Awaitable[Any] = self._client.patch(
                type(resource), metadata["name"], resource, namespace=metadata["namespace"],
                patch_type=PatchType.APPLY, force=True, field_manager=FIELD_MANAGER,
            )  # fmt: skip
            return found

        return dict(await self._do(call))

    async def create(self, manifest: Manifest) -> None:
        """Creates an object; one that is there already is left alone."""
        try:
            await self._do(self._creation(manifest))
        except ApiFailure as failure:
            if failure.code != 409:
                raise

    async def delete(self, kind: str, name: str, namespace: str) -> None:
        """Deletes an object and, in the background, what it owns; one that is gone already is fine."""
        resource, cascade = _RESOURCES[kind], CascadeType.BACKGROUND
        try:
            await self._do(lambda: self._client.delete(resource, name, namespace=namespace, cascade=cascade))
        except ApiFailure as failure:
            if failure.code != 404:
                raise

    async def put_status(self, name: str, namespace: str, version: str, status: Manifest) -> None:
        """Replaces an RLJob's status if it is still at a resource version; a conflict is an ApiFailure with 409."""
        # A merge patch would keep what the new status leaves out.
        operations: list[Manifest] = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/status", "value": status},
        ]
        await self._patch(_RESOURCES[KIND].Status, name, namespace, operations, PatchType.JSON)

    async def patch(self, kind: str, name: str, namespace: str, operations: list[Manifest]) -> None:
        """A JSON patch."""
        await self._patch(_RESOURCES[kind], name, namespace, operations, PatchType.JSON)

    async def merge(self, kind: str, name: str, namespace: str, change: Manifest) -> None:
        """A JSON merge patch."""
        await self._patch(_RESOURCES[kind], name, namespace, change, PatchType.MERGE)

    async def create_new(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Creates an object and returns it as stored; one that is there already is an ApiFailure with 409.

        dry_run: returns it as it would be stored.
        """
        return dict(await self._do(self._creation(manifest, dry_run=dry_run), repeat=False))

    async def log(self, pod: str, namespace: str, *, container: str, follow: bool, lines: int) -> AsyncIterator[str]:
        """Lines of a container's log."""
        options = {"container": container, "follow": follow, "tail_lines": lines}
        try:
            async for line in self._client.log(pod, namespace=namespace, **options):
                yield line
        except (httpx2.HTTPError, OSError, ConfigError) as error:
            raise _failure(error) from None

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    def _creation(self, manifest: Manifest, *, dry_run: bool = False) -> Callable[[], Awaitable[Any]]:
        resource: Any = _RESOURCES[manifest["kind"]].from_dict(manifest)
        return lambda: self._client.create(resource, namespace=manifest["metadata"]["namespace"], dry_run=dry_run)

    async def _patch(self, resource: Any, name: str, namespace: str, change: Any, kind: PatchType) -> None:
        await self._do(lambda: self._client.patch(resource, name, change, namespace=namespace, patch_type=kind))

    async def _do(self, call: Callable[[], Awaitable[Any]], *, repeat: bool = True) -> Any:
        """Calls, and again after a pause while what is wrong may pass; all within TIMEOUT_S."""
        pauses = iter(PAUSES_S if repeat else ())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    try:
                        return await call()
                    except (httpx2.HTTPError, OSError, ConfigError) as error:
                        failure = _failure(error)
                        pause_s = next(pauses, None)
                        if pause_s is None or failure.code not in _PASSING:
                            raise failure from None
                    await asyncio.sleep(max(pause_s, failure.retry_after_s) * random.uniform(0.7, 1.3))
        except TimeoutError:
            raise ApiFailure(f"the API server did not answer within {TIMEOUT_S:.0f} s.", 0) from None


def _failure(error: httpx2.HTTPError | OSError | ConfigError) -> ApiFailure:
    if isinstance(error, ConfigError):  # of a login that a program of the kubeconfig makes, for one
        return ApiFailure(f"the kubeconfig's login does not work: {error}", UNAUTHORIZED)
    if not isinstance(error, httpx2.HTTPStatusError):
        return ApiFailure(f"the API server cannot be reached: {error}", 0)
    wished = error.response.headers.get("Retry-After", "")
    wait_s = min(TIMEOUT_S, float(wished)) if wished.isdecimal() else 0.0
    said = str(error).partition("\nFor more information check")[0]  # an address of httpx's documentation
    return ApiFailure(f"the API server refused: {said}", error.response.status_code, wait_s)
