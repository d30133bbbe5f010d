"""A trajectory while this engine works on it: what it holds, what was flushed, and where it ends.

Pure; `RolloutPhase` (phase.py) moves the tokens. A flight starts from a claim, takes the engine's outputs,
and lands: FINISHED with a reason, or PARKED when the iteration's token budget is used up or the phase ends.
"""

import math
from collections.abc import Sequence

import numpy as np
import xxhash

from crescendo.buffer.protocol import Claim, Update
from crescendo.common.types import Segment, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.rollout.engine.base import EngineRequest, FinishReason
from crescendo.rollout.watch import Decode, ResponseWatch


class Flight:
    """One claimed trajectory. Token counts are of the response; `offset` counts from its start."""

    def __init__(
        self,
        claim: Claim,
        begin: rollout_pb2.BeginRequest,
        *,
        request_id: str,
        max_sequence_tokens: int,
        decode: Decode | None,
        now_s: float,
        worker_id: str = "",
    ) -> None:
        trajectory = claim.trajectory
        self.request_id = request_id
        self.trajectory_id: TrajectoryId = trajectory.trajectory_id
        self.prompt_token_ids: list[int] = trajectory.prompt_token_ids.tolist() or list(claim.prompt.token_ids)
        self.earlier_token_ids: list[int] = trajectory.token_ids.tolist()
        self.state = TrajectoryState.LEASED
        self.finish_reason: FinishReason = common_pb2.FINISH_REASON_UNSPECIFIED
        self.flushed_at_s = now_s
        self._interrupted = False
        self._worker_id = worker_id
        self._begin = begin
        self._token_ids: list[int] = []
        self._log_probs: list[float] = []
        self._num_flushed = 0
        self._watch = ResponseWatch(
            begin.repetition, begin.sampling.stop_strings, decode, earlier=self.earlier_token_ids
        )
        limit = min(begin.max_response_tokens, max_sequence_tokens - len(self.prompt_token_ids))
        used = sum(len(one.token_ids) for one in trajectory.segments if one.iteration == begin.iteration)
        self._response_left = max(0, limit - len(self.earlier_token_ids))
        self._budget_left = max(0, begin.token_budget - used) if begin.token_budget else math.inf

    @property
    def max_tokens(self) -> int:
        """Tokens that may still be generated here; 0: it lands without the engine."""
        return int(min(self._response_left, self._budget_left))

    @property
    def landed(self) -> bool:
        """Whether it has left the engine."""
        return self.state != TrajectoryState.LEASED

    @property
    def num_tokens(self) -> int:
        """Tokens generated since the claim."""
        return len(self._token_ids)

    @property
    def num_unflushed(self) -> int:
        """Tokens that only this process has."""
        return len(self._token_ids) - self._num_flushed

    def request(self) -> EngineRequest:
        """What the engine is asked for. A seeded one depends on run, trajectory and position alone."""
        sampling, seed = self._begin.sampling, None
        if sampling.HasField("seed"):
            key = f"{sampling.seed}|{self.trajectory_id}|{len(self.earlier_token_ids)}"
            seed = xxhash.xxh3_64_intdigest(key.encode()) >> 1
        return EngineRequest(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            generated_token_ids=self.earlier_token_ids,
            max_tokens=self.max_tokens,
            sampling=sampling,
            seed=seed,
        )

    def take(self, token_ids: Sequence[int], log_probs: Sequence[float], reason: FinishReason) -> bool:
        """Appends an output. Returns whether the flight ended by a rule the engine does not know.

        In that case the engine still runs the request, and whoever calls must end it.
        """
        if not math.isfinite(sum(log_probs)):
            self._land(TrajectoryState.DROPPED, common_pb2.FINISH_REASON_ABORTED)
            return True
        end = self._watch.end_of(token_ids)
        if end is not None:
            count, reason_here = end
            self._append(token_ids[:count], log_probs[:count])
            self._land(TrajectoryState.FINISHED, reason_here)
            return reason == common_pb2.FINISH_REASON_UNSPECIFIED
        self._append(token_ids, log_probs)
        if reason == common_pb2.FINISH_REASON_LENGTH:
            self.land_at_limit()
        elif reason == common_pb2.FINISH_REASON_ABORTED:
            self.park()
        elif reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            self._land(TrajectoryState.FINISHED, reason)
        return False

    def land_at_limit(self) -> None:
        """No token may follow: the response is at its limit, or the iteration's budget is used up."""
        if self.num_tokens >= self._response_left:
            self._land(TrajectoryState.FINISHED, common_pb2.FINISH_REASON_LENGTH)
        else:
            self._land(TrajectoryState.PARKED, common_pb2.FINISH_REASON_UNSPECIFIED)

    def park(self) -> None:
        """Leaves the engine unfinished, with budget left; it may go on in this iteration or a later one."""
        self._interrupted = True
        self._land(TrajectoryState.PARKED, common_pb2.FINISH_REASON_UNSPECIFIED)

    def abort(self) -> None:
        """Ends for good by the controller's order."""
        self._land(TrajectoryState.FINISHED, common_pb2.FINISH_REASON_ABORTED)

    def update(self) -> Update:
        """The news since the last flush. `flushed` takes it back in once the buffer has it."""
        start, end = self._num_flushed, len(self._token_ids)
        segment = None
        if end > start:
            segment = Segment(
                weight_version=self._begin.weight_version,
                iteration=self._begin.iteration,
                stage=self._begin.stage,
                branch=self._begin.branch,
                token_ids=np.asarray(self._token_ids[start:end], dtype=np.int32),
                log_probs=np.asarray(self._log_probs[start:end], dtype=np.float32),
                loss_mask=np.ones(end - start, dtype=np.bool_),
                worker_id=self._worker_id,
            )
        offset = len(self.earlier_token_ids) + start
        return Update(self.trajectory_id, offset, segment, self.state, self.finish_reason, self._interrupted)

    def flushed(self, update: Update, now_s: float) -> None:
        """The buffer took the update."""
        self._num_flushed += len(update.segment.token_ids) if update.segment else 0
        self.flushed_at_s = now_s

    def _append(self, token_ids: Sequence[int], log_probs: Sequence[float]) -> None:
        self._token_ids.extend(token_ids)
        self._log_probs.extend(log_probs)

    def _land(self, state: TrajectoryState, reason: FinishReason) -> None:
        self.state = state
        self.finish_reason = reason
