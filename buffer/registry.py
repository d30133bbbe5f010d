"""The weight registry on Redis: versions, their parents and, once published, their manifests."""

from collections.abc import Mapping

from crescendo.buffer.part import Part
from crescendo.buffer.protocol import WeightRecord
from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2


class WeightRegistry(Part):
    """Issues versions and keeps what is known of them."""

    async def next_version(self, fence: common_pb2.Fence, *, parent: int, branch: int, iteration: int) -> int:
        version: int = await self._client.run("next_version", fence, parent, branch, iteration, self._nonce())
        return version

    async def register_weights(self, fence: common_pb2.Fence, manifest: common_pb2.WeightManifest) -> None:
        if manifest.version < 1:
            raise RequestError(f"weight version {manifest.version} can't be registered; versions start at 1.")
        await self._client.run("register_weights", fence, manifest.version, manifest.SerializeToString())

    async def weights(self, version: int) -> WeightRecord | None:
        (fields,) = await self._client.read([("HGETALL", self._keys.weights(version))])
        return _record(version, fields) if fields else None

    async def lineage(self) -> list[WeightRecord]:
        (newest,) = await self._client.read([("GET", self._keys.version)])
        versions = range(1, int(newest or 0) + 1)
        rows = await self._client.read([("HGETALL", self._keys.weights(version)) for version in versions])
        return [_record(version, fields) for version, fields in zip(versions, rows, strict=True)]


def _record(version: int, fields: Mapping[bytes, bytes]) -> WeightRecord:
    return WeightRecord(
        version=version,
        parent=int(fields[b"parent"]),
        branch=int(fields[b"branch"]),
        iteration=int(fields[b"iteration"]),
        manifest=common_pb2.WeightManifest.FromString(fields.get(b"manifest", b"")),
    )
