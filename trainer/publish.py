"""One weight version into a channel, with its manifest: places, digests, canaries."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from crescendo.common import failpoints
from crescendo.common.errors import RequestError
from crescendo.common.weights import manifest_digest
from crescendo.proto.v1 import common_pb2, trainer_pb2
from crescendo.trainer import packing
from crescendo.trainer.channels import WeightChannel
from crescendo.trainer.megatron import pipeline
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.packing import Sample

CANARY_MICRO_BATCH_TOKENS = 4096


def score(
    model: PolicyModel, sequences: Sequence[Sequence[int]], temperature: float, max_tokens: int
) -> list[list[float]]:
    """Log-probabilities of each sequence's tokens from the second on. Raises RequestError for unfit sequences."""
    samples = []
    for index, tokens in enumerate(sequences):
        array = np.asarray(tokens, dtype=np.int32)
        if len(array) and (array.min() < 0 or array.max() >= model.shape.vocab_size):
            raise RequestError(
                f"sequences[{index}] holds a token outside the vocabulary of {model.shape.vocab_size}.",
                field="sequences",
            )
        samples.append(Sample(array, first=1))
    result: list[list[float]] = [[] for _ in samples]
    micros = packing.pack(samples, max_tokens, model.length_multiple)
    for micro, scores in zip(micros, pipeline.log_probs(model, micros, temperature), strict=True):
        counts = [samples[i].num_scored for i in micro.samples]
        for index, part in zip(micro.samples, torch.split(scores, counts), strict=True):
            result[index] = part.tolist()
    return result


def publish(
    model: PolicyModel, channel: WeightChannel | None, request: trainer_pb2.PublishRequest
) -> trainer_pb2.PublishResponse:
    """Writes and describes the version. Every rank must call it; channel: of ranks that write."""
    began = time.perf_counter()
    sequences = [list(each.token_ids) for each in request.canaries]
    canaries = [
        common_pb2.Canary(token_ids=tokens, log_probs=log_probs)
        for tokens, log_probs in zip(sequences, score(model, sequences, 1.0, CANARY_MICRO_BATCH_TOKENS), strict=True)
    ]
    canary_seconds = time.perf_counter() - began
    if channel is None:
        for _ in model.export() if model.at.holds_unique_weights else ():
            pass
        return trainer_pb2.PublishResponse()
    dtype = str(model.dtype).removeprefix("torch.")
    written = channel.write(request.version, model.export_layout(), dtype, model.export())
    failpoints.reach("trainer.published")
    manifest = common_pb2.WeightManifest(
        version=request.version,
        parent=request.parent,
        branch=request.branch,
        iteration=request.iteration,
        channel=channel.name,
        shards=written.shards,
        tensors=written.tensors,
        digest=manifest_digest(written.tensors, [tensor.digest for tensor in written.tensors]),
        canaries=canaries,
    )
    return trainer_pb2.PublishResponse(
        manifest=manifest,
        gather_seconds=written.seconds,
        digest_seconds=written.digest_seconds,
        canary_seconds=canary_seconds,
    )
