"""The receiving end of a weight update, and what proves it: the attestation.

    UpdateWeights: fetch what is elsewhere (fetch.py)
                   map shards -> digest of every tensor (threads)  }  together -> canaries, through the
                                 engine.load_weights (its thread)  }               engine's forward pass
    Admit(version): the controller compared the attestation; only now the engine may work for the ledger

The digest proves that the bytes are those that were published; the canaries prove that they are where they
belong (a wrong mapping or a stale packed copy has the right digest). A mismatch is reported as it is: the
controller decides. Lives as long as the service; used on the event loop.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from crescendo.common import failpoints
from crescendo.common.errors import WeightMismatchError
from crescendo.common.weights import manifest_digest, tensor_digest
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.shards import FILE_CHANNELS, MappedShard, check_manifest, map_shards, tensor_bytes
from crescendo.rollout.engine.thread import EngineThread
from crescendo.rollout.fetch import NodeCopy

DIGEST_PART_BYTES = 16 << 20  # digests are handed out in parts of this size


class WeightReceiver:
    """Knows which version the engine holds, and whether it was admitted."""

    def __init__(self, engine: EngineThread, copy: NodeCopy, *, threads: int = 0) -> None:
        """copy: the node's; threads: that compute digests; 0: up to two, beside the engine's."""
        self._engine = engine
        self._copy = copy
        workers = threads or min(2, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="digest")
        self.loaded_version = 0
        self.admitted = False

    async def update(
        self,
        published: common_pb2.WeightManifest,
        fence: common_pb2.Fence,
        deadline_s: float,
        *,
        canaries: bool = True,
    ) -> common_pb2.Attestation:
        """Loads a version and attests it; nothing is admitted until `admit`.

        canaries: false leaves them out, since an engine without its cache cannot compute; they follow by ScoreTokens.
        Raises RequestError for a manifest that cannot be loaded: the engine then holds no version; WorkerLostError
        or DeadlineError when its bytes cannot be fetched.
        """
        self.admitted = False
        manifest = await asyncio.to_thread(self._copy.localize, published, fence, deadline_s)
        check_manifest(manifest)
        digesting = asyncio.create_task(self._digests(manifest))
        started_s = time.perf_counter()
        try:
            self.loaded_version = 0
            streamed = await self._engine.call(lambda engine: engine.load_weights(manifest), deadline_s)
            self.loaded_version = manifest.version
            failpoints.reach("engine.loaded")
            load_s = time.perf_counter() - started_s
            digests, digest_s = await digesting
            digests = digests if streamed is None else streamed
        finally:
            digesting.cancel()
        if manifest.channel != published.channel and digests != [tensor.digest for tensor in published.tensors]:
            self._copy.discard(published)
        started_s = time.perf_counter()
        sequences = [list(one.token_ids) for one in manifest.canaries] if canaries else []
        echoes = await self._engine.score(sequences, deadline_s)
        return common_pb2.Attestation(
            version=manifest.version,
            digest=manifest_digest(manifest.tensors, digests),
            tensor_digests=digests,
            canaries=[common_pb2.CanaryEcho(log_probs=echo) for echo in echoes],
            load_seconds=load_s,
            digest_seconds=digest_s,
            canary_seconds=time.perf_counter() - started_s,
        )

    def admit(self, version: int) -> None:
        """Raises WeightMismatchError unless the engine holds exactly this version."""
        if version != self.loaded_version or version <= 0:
            raise WeightMismatchError(
                f"weight version {version} cannot be admitted: the engine holds version {self.loaded_version}.",
                field="version",
                fix="Send UpdateWeights for it first.",
            )
        self.admitted = True

    def require(self, version: int | None = None) -> int:
        """The admitted version; raises WeightMismatchError when there is none, or it is not `version`."""
        if not self.admitted or (version is not None and version != self.loaded_version):
            raise WeightMismatchError(
                f"the engine holds weight version {self.loaded_version}"
                f"{'' if self.admitted else ', not admitted'}; wanted is {version or 'an admitted one'}.",
                field="weight_version",
                fix="Send UpdateWeights and Admit for it first.",
            )
        return self.loaded_version

    def lost(self) -> None:
        """The engine's weights are gone (sleep, restart)."""
        self.loaded_version = 0
        self.admitted = False

    def close(self) -> None:
        """Ends the digest threads and removes what was fetched."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._copy.close()

    async def _digests(self, manifest: common_pb2.WeightManifest) -> tuple[list[int], float]:
        """Digest of every tensor in manifest order, and the seconds from first to last; of files only."""
        started_s = time.perf_counter()
        if manifest.channel not in FILE_CHANNELS:
            return [], 0.0
        shards = await asyncio.to_thread(map_shards, manifest)
        loop = asyncio.get_running_loop()
        parts = [loop.run_in_executor(self._pool, _digest_part, shards, part) for part in _parts(manifest.tensors)]
        digests = [digest for part in await asyncio.gather(*parts) for digest in part]
        return digests, time.perf_counter() - started_s


def _parts(tensors: Sequence[common_pb2.TensorSpec]) -> list[list[common_pb2.TensorSpec]]:
    """Consecutive tensors in parts of about DIGEST_PART_BYTES."""
    parts: list[list[common_pb2.TensorSpec]] = []
    size = DIGEST_PART_BYTES
    for tensor in tensors:
        if size >= DIGEST_PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.num_bytes
    return parts


def _digest_part(shards: list[MappedShard], tensors: Sequence[common_pb2.TensorSpec]) -> list[int]:
    return [tensor_digest(tensor_bytes(shards, tensor)) for tensor in tensors]
