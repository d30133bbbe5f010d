"""Learning rate by optimizer step: linear warm-up, a hold at the peak, then a decay."""

import math

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(wanted: trainer_pb2.LearningRate, step: int) -> float:
    """The rate of optimizer step `step`, counted from 0.

    decay_steps of 0 leaves the peak: the sender knows the last step, not we. Raises RequestError for an unknown
    schedule or a negative peak.
    """
    schedule = wanted.schedule or "constant"
    if schedule not in SCHEDULES:
        raise RequestError(
            f"learning_rate.schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}.",
            field="learning_rate.schedule",
        )
    if not 0 <= wanted.peak < math.inf:
        raise RequestError(f"learning_rate.peak is {wanted.peak}; it must be at least 0.", field="learning_rate.peak")
    if step < wanted.warmup_steps:
        return wanted.peak * (step + 1) / wanted.warmup_steps
    into_decay = step - wanted.warmup_steps - wanted.hold_steps
    if schedule == "constant" or into_decay <= 0 or wanted.decay_steps <= 0:
        return wanted.peak
    done = min(1.0, into_decay / wanted.decay_steps)
    remaining = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return wanted.peak * (wanted.final_fraction + (1.0 - wanted.final_fraction) * remaining)
