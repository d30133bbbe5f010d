"""Why an engine is admitted, or not."""

import pytest

from crescendo.common.weights import manifest_digest
from crescendo.controller.loop.sync import canary_difference, mismatch
from crescendo.proto.v1 import common_pb2


def published() -> common_pb2.WeightManifest:
    tensors = [common_pb2.TensorSpec(name=f"t{n}", dtype="float32", shape=[2], digest=n + 10) for n in range(3)]
    digest = manifest_digest(tensors, [tensor.digest for tensor in tensors])
    canary = common_pb2.Canary(token_ids=[1, 2, 3], log_probs=[-0.5, -1.0])
    return common_pb2.WeightManifest(version=7, tensors=tensors, digest=digest, canaries=[canary])


def honest() -> common_pb2.Attestation:
    manifest = published()
    return common_pb2.Attestation(
        version=7,
        digest=manifest.digest,
        tensor_digests=[tensor.digest for tensor in manifest.tensors],
        canaries=[common_pb2.CanaryEcho(log_probs=[-0.5, -1.0])],
    )


def test_an_honest_attestation_proves_the_version() -> None:
    assert mismatch(published(), honest(), 1e-3) == ""


def test_each_lie_is_named() -> None:
    other_version = honest()
    other_version.version = 6
    assert "serves version 6" in mismatch(published(), other_version, 1e-3)
    flipped = honest()
    flipped.tensor_digests[1] ^= 1
    assert "digest of t1" in mismatch(published(), flipped, 1e-3)
    short = honest()
    del short.tensor_digests[2:]
    assert "digest of the version" in mismatch(published(), short, 1e-3)
    wrong_total = honest()
    wrong_total.digest ^= 1
    assert "digest of the version" in mismatch(published(), wrong_total, 1e-3)


@pytest.mark.parametrize("echo", [[-0.5, -1.1], [-0.5], [], [-0.5, float("nan")]])
def test_a_canary_that_differs_is_a_mismatch(echo: list[float]) -> None:
    attestation = honest()
    attestation.canaries[0].log_probs[:] = echo
    assert "canary" in mismatch(published(), attestation, 1e-3)


def test_a_missing_canary_is_infinitely_far() -> None:
    attestation = honest()
    del attestation.canaries[:]
    assert canary_difference(published(), attestation) == float("inf")
