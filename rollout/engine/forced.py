"""Engines for benchmarks: responses end at lengths that are given, and nowhere else.

Two systems can only be compared on the same work, and a response's length is the model's business. So the
benchmarks (tests/bench) start the rollout service with the option `forced_lengths`, a file; `make_engine` then
wraps the real engine in `ForcedLengthEngine`, which lives and dies with it. Requests outside the ledger
(validation, canaries) pass through unchanged.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from crescendo.common.errors import ConfigError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import Engine, EngineOutput, EngineRequest, Output

Lengths: TypeAlias = Sequence[Sequence[Sequence[int]]]

OPTION = "forced_lengths"
_TRAJECTORY = re.compile(r"b\d+-i(\d+)-d(\d+)-s(\d+)(#.*)?")  # common.types.trajectory_id, and the request's suffix


def read_lengths(path: Path) -> Lengths:
    """Reads [iteration][draw][sample] in tokens, as JSON; raises ConfigError when it is something else."""
    try:
        lengths = json.loads(path.read_text(encoding="utf-8"))
        valid = all(length > 0 for step in lengths for group in step for length in group)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", field=OPTION, fix="Give a JSON file.") from None
    if not lengths or not valid:
        raise ConfigError(f"{path} must hold positive lengths, [iteration][draw][sample].", field=OPTION)
    return lengths  # type: ignore[no-any-return]


class ForcedLengthEngine:
    """An engine whose trajectories have given lengths; what is beyond the table's end starts at its beginning."""

    def __init__(self, engine: Engine, lengths: Lengths) -> None:
        self._engine = engine
        self._lengths = lengths
        self._whole: set[str] = set()  # requests that may run to their forced end

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and response together."""
        return self._engine.max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something."""
        return self._engine.has_work

    def length_of(self, request_id: str) -> int | None:
        """The response tokens that a trajectory gets; None for a request outside the ledger."""
        found = _TRAJECTORY.fullmatch(request_id)
        if found is None:
            return None
        iteration, draw, sample = (int(found.group(number)) for number in (1, 2, 3))
        step = self._lengths[(iteration - 1) % len(self._lengths)]
        group = step[draw % len(step)]
        return group[sample % len(group)]

    def add(self, request: EngineRequest) -> None:
        """Takes a request; its limits (budget, context) hold beside the forced length."""
        length = self.length_of(request.request_id)
        if length is not None:
            left = length - len(request.generated_token_ids)
            if left <= request.max_tokens:
                self._whole.add(request.request_id)
            sampling = common_pb2.Sampling()
            sampling.CopyFrom(request.sampling)
            sampling.ClearField("stop_token_ids")
            limit = max(1, min(left, request.max_tokens))
            request = replace(request, max_tokens=limit, ignore_eos=True, sampling=sampling)
        self._engine.add(request)

    def step(self) -> list[Output]:
        """One forward pass; a response at its forced end counts as ended by the model."""
        return [self._ended(one) if isinstance(one, EngineOutput) else one for one in self._engine.step()]

    def _ended(self, output: EngineOutput) -> EngineOutput:
        if output.finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED or output.request_id not in self._whole:
            return output
        self._whole.discard(output.request_id)
        if output.finish_reason != common_pb2.FINISH_REASON_LENGTH:
            return output
        return output._replace(finish_reason=common_pb2.FINISH_REASON_STOP)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests."""
        self._whole.difference_update(request_ids)
        self._engine.abort(request_ids)

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Takes a sequence to score."""
        self._engine.add_score(request_id, token_ids)

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Loads one version in place; what runs is aborted."""
        self._whole.clear()
        return self._engine.load_weights(manifest)

    def release(self, method: str) -> None:
        """Lets go of the device."""
        self._whole.clear()
        self._engine.release(method)

    def acquire(self, *, cache: bool = True) -> None:
        """Takes the device back."""
        self._engine.acquire(cache=cache)

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()
