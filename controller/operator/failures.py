"""Why an attempt failed, whether another may help, and when. Pure.

reason                        retried
InvalidRun                    no: the run file, data or folder is wrong (exit code 2)
EnvironmentProblem            no: the image or node lacks something (exit code 3)
FetchFailed                   no: a model or data set is not where its URI says, or may not be read
Stopped                       no: a person stopped the run (exit code 130)
StorageMismatch               no: volume and buffer are not a pair
ValidationFailed              no: the RLJob cannot run
DeadlineExceeded              no: activeDeadlineSeconds
BackoffLimitExceeded          no: too many attempts without progress
PreRunningDeadlineExceeded    yes
BufferNotReady                yes: the job's own buffer did not come back after a suspension
AttemptLost                   yes: the RayJob was deleted or its head was lost
AttemptFailed                 yes: any other end
"""

import re
from dataclasses import dataclass
from typing import Final

from crescendo.controller.operator.resource import Attempt

FIRST_BACKOFF_S: Final = 10.0
LONGEST_BACKOFF_S: Final = 300.0
BAD_INPUT: Final = 2
_EXIT_CODE: Final = re.compile(r"exit code:? (\d+)")
# Ray shows a run's last lines: among events and advice, `crescendo run` says there what ended each of its lives.
_ERROR: Final = re.compile(r"^error: (.*?)(?=^the run failed|\Z)", re.MULTILINE | re.DOTALL)
_FINAL_CODES: Final = {BAD_INPUT: "InvalidRun", 3: "EnvironmentProblem", 130: "Stopped"}


@dataclass(frozen=True)
class Failure:
    """An attempt's end. reason: CamelCase, as a condition carries it."""

    reason: str
    message: str
    retryable: bool


def classify(attempt: Attempt) -> Failure:
    """Why a failed attempt failed, from KubeRay's status of it."""
    found = _EXIT_CODE.search(attempt.message)
    code = int(found.group(1)) if found else None
    message = attempt.message or f"RayJob {attempt.name} failed ({attempt.reason or 'no reason given'})"
    if code is not None and (errors := _ERROR.findall(message)):
        message = f"exit code {code}: {errors[-1].strip()}"
    if code in _FINAL_CODES:
        return Failure(_FINAL_CODES[code], message, retryable=False)
    return Failure("AttemptFailed", message, retryable=True)


def lost(name: str) -> Failure:
    """An attempt whose RayJob is gone though nobody here deleted it."""
    return Failure("AttemptLost", f"RayJob {name} is gone", retryable=True)


def backoff_s(failures: int) -> float:
    """Wait before the next attempt, after so many failures in a row (at least one)."""
    return float(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (min(failures, 16) - 1)))
