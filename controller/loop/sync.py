"""Weights from trainer to engines: publish, load, attest, admit.

An engine serves a version only after its attestation matched: the digests of the bytes it loaded, and the
log-probabilities of canary sequences recomputed by it. A digest cannot see a wrong mapping or a stale packed
copy; the canary can.
"""

import asyncio
import math
from dataclasses import dataclass, field

from crescendo.buffer import ExperienceBuffer
from crescendo.common import failpoints
from crescendo.common.config.schema import Config
from crescendo.common.errors import WeightMismatchError
from crescendo.controller.launch import Worker
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.lease import DeviceLease
from crescendo.proto.v1 import common_pb2, rollout_pb2, trainer_pb2

CANARY_TOKENS = 32  # longest canary: each update pays two forward passes of them
ATTEMPTS = range(1, 3)


@dataclass
class SyncFacts:
    """What one update measured."""

    publish_s: float = 0.0
    load_s: float = 0.0
    canary_difference: float = 0.0


@dataclass
class WeightSync:
    """Publishes versions and admits engines. canaries: token sequences, replaced as better ones come."""

    config: Config
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board
    canaries: list[list[int]] = field(default_factory=list)
    manifest: common_pb2.WeightManifest = field(default_factory=common_pb2.WeightManifest)
    max_difference: float = 0.0  # over the whole run, engine to trainer

    async def publish(self, trainer: Worker, *, version: int, parent: int, branch: int, iteration: int) -> float:
        """The trainer puts a version into the weight channel; returns its seconds."""
        request = trainer_pb2.PublishRequest(
            fence=self.lease.fence,
            idempotency_key=f"publish-{version}",
            version=version,
            parent=parent,
            branch=branch,
            iteration=iteration,
            channel=self.config.trainer.weight_channel,
            canaries=[trainer_pb2.ScoredSequence(token_ids=tokens[:CANARY_TOKENS]) for tokens in self.canaries],
        )
        answer = await trainer.call("Publish", request, timeout_s=self.config.deadlines.sync_s)
        self.manifest = answer.manifest
        await self.buffer.register_weights(self.lease.fence, self.manifest)
        failpoints.reach("publish.registered")
        return float(answer.gather_seconds + answer.digest_seconds + answer.canary_seconds)

    async def load(self, engines: list[Worker]) -> list[common_pb2.Attestation]:
        """Brings the published version to engines; raises WeightMismatchError when one cannot prove its bytes.

        Engines without a cache cannot compute canaries yet: `admit` asks for them.
        """
        return list(await asyncio.gather(*(self._update(engine) for engine in engines)))

    async def admit(self, engines: list[Worker], attestations: list[common_pb2.Attestation]) -> SyncFacts:
        """Lets engines serve what they loaded; raises WeightMismatchError when one cannot prove it."""
        attestations = await asyncio.gather(*map(self._complete, engines, attestations))
        differences = [canary_difference(self.manifest, attestation) for attestation in attestations]
        # On record before any engine serves: the audit holds every trained token against it.
        for engine, attestation, difference in zip(engines, attestations, differences, strict=True):
            self.board.attestation(engine.spec.holder, attestation, difference)
        failpoints.reach("publish.attested")
        admit = rollout_pb2.AdmitRequest(fence=self.lease.fence, version=self.manifest.version)
        await asyncio.gather(
            *(engine.call("Admit", admit, timeout_s=self.config.deadlines.call_s) for engine in engines)
        )
        failpoints.reach("publish.admitted")
        self.board.status.weight_version = self.manifest.version
        worst = max(differences, default=0.0)
        self.max_difference = max(self.max_difference, worst)
        return SyncFacts(load_s=max((a.load_seconds for a in attestations), default=0.0), canary_difference=worst)

    async def retire(self, trainer: Worker) -> None:
        """Frees the channel's memory of versions that no engine needs any more."""
        request = trainer_pb2.RetireRequest(fence=self.lease.fence, below_version=self.manifest.version)
        await trainer.call("Retire", request, timeout_s=self.config.deadlines.call_s)

    async def _update(self, engine: Worker, attempts: range = ATTEMPTS) -> common_pb2.Attestation:
        problem = ""
        for attempt in attempts:
            request = rollout_pb2.UpdateWeightsRequest(
                fence=self.lease.fence,
                idempotency_key=f"update-{self.manifest.version}-{attempt}",
                manifest=self.manifest,
            )
            answer = await engine.call("UpdateWeights", request, timeout_s=self.config.deadlines.sync_s)
            attestation: common_pb2.Attestation = answer.attestation
            tolerance = self.config.rollout.canary_tolerance if attestation.canaries else math.inf
            problem = mismatch(self.manifest, attestation, tolerance)
            if not problem:
                return attestation
            self.board.event(
                "weights.refused", f"{engine.worker_id} is not admitted: {problem}", severity="error", attempt=attempt
            )
        raise WeightMismatchError(f"{engine.worker_id} cannot prove weight version {self.manifest.version}: {problem}")

    async def _complete(self, engine: Worker, attestation: common_pb2.Attestation) -> common_pb2.Attestation:
        """Asks for the canaries that an engine without a cache left out; loads once more when they differ."""
        if len(attestation.canaries) == len(self.manifest.canaries):
            return attestation
        sequences = [rollout_pb2.TokenSequence(token_ids=one.token_ids) for one in self.manifest.canaries]
        request = rollout_pb2.ScoreTokensRequest(sequences=sequences)
        answer = await engine.call("ScoreTokens", request, timeout_s=self.config.deadlines.sync_s)
        attestation.canaries.extend(answer.scores)
        problem = mismatch(self.manifest, attestation, self.config.rollout.canary_tolerance)
        if not problem:
            return attestation
        self.board.event("weights.refused", f"{engine.worker_id} is not admitted: {problem}", severity="error")
        return await self._update(engine, range(ATTEMPTS.stop, ATTEMPTS.stop + 1))


def canary_difference(manifest: common_pb2.WeightManifest, attestation: common_pb2.Attestation) -> float:
    """Largest absolute difference of canary log-probabilities, engine to trainer; infinite if any is missing."""
    if len(manifest.canaries) != len(attestation.canaries):
        return float("inf")
    worst = 0.0
    for expected, echoed in zip(manifest.canaries, attestation.canaries, strict=True):
        if len(expected.log_probs) != len(echoed.log_probs):
            return float("inf")
        for one, other in zip(expected.log_probs, echoed.log_probs, strict=True):
            difference = abs(one - other)
            worst = max(worst, difference if difference == difference else float("inf"))  # NaN is a mismatch
    return worst


def mismatch(manifest: common_pb2.WeightManifest, attestation: common_pb2.Attestation, tolerance: float) -> str:
    """Why an attestation does not prove the manifest; empty when it does."""
    if attestation.version != manifest.version:
        return f"it serves version {attestation.version}, not {manifest.version}."
    for tensor, digest in zip(manifest.tensors, attestation.tensor_digests, strict=False):
        if tensor.digest != digest:
            return f"digest of {tensor.name} is {digest:016x}, published {tensor.digest:016x}."
    if attestation.digest != manifest.digest or len(attestation.tensor_digests) != len(manifest.tensors):
        return f"digest of the version is {attestation.digest:016x}, published {manifest.digest:016x}."
    difference = canary_difference(manifest, attestation)
    if difference > tolerance:
        return f"canary log-probabilities differ by {difference:.3g}, tolerance {tolerance:.3g}."
    return ""
