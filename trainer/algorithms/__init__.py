"""Objectives by name. A new one is a file here and a line in the registry."""

from collections.abc import Callable, Mapping

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.algorithms import grpo, mirror_descent
from crescendo.trainer.algorithms.base import BatchSize, Objective, Tokens, sequence_scale

REGISTRY: dict[str, Callable[[Mapping[str, float], Mapping[str, str]], Objective]] = {
    "mirror_descent": mirror_descent.from_options,
    "grpo": grpo.from_options,
}


def objective(wanted: trainer_pb2.Algorithm) -> Objective:
    """The objective that a batch names; raises RequestError for an unknown name or bad parameters."""
    if wanted.name not in REGISTRY:
        raise RequestError(
            f"algorithm.name is {wanted.name!r}; it must be one of {', '.join(sorted(REGISTRY))}.",
            field="algorithm.name",
        )
    return REGISTRY[wanted.name](dict(wanted.parameters), dict(wanted.options))


__all__ = ["REGISTRY", "BatchSize", "Objective", "Tokens", "objective", "sequence_scale"]
