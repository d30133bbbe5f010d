"""What a judge found: how many cases passed, and why the others did not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.sandbox.protocol import Ending, Outcome

Verdict: TypeAlias = "common_pb2.Verdict.ValueType"


@dataclass(frozen=True)
class Judged:
    """A verdict over all cases of one candidate. detail: the first failure's cause, for people."""

    num_cases: int
    num_passed: int
    verdict: Verdict
    detail: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether every case was answered and passed."""
        return self.verdict == common_pb2.VERDICT_CORRECT

    @property
    def share(self) -> float:
        """Passed cases over all cases."""
        return self.num_passed / self.num_cases if self.num_cases else 0.0


def tally(passed: list[bool], causes: list[str], is_late: bool) -> Judged:
    """All cases together: correct if each passed, else a timeout if time was the trouble, else wrong.

    causes: one a case, empty where it passed.
    """
    num_passed = sum(passed)
    if passed and num_passed == len(passed):
        return Judged(len(passed), num_passed, common_pb2.VERDICT_CORRECT, f"{num_passed} cases")
    verdict: Verdict = common_pb2.VERDICT_TIMEOUT if is_late else common_pb2.VERDICT_WRONG
    cause = next((cause for cause in causes if cause), "no case")
    return Judged(len(passed), num_passed, verdict, f"{num_passed} of {len(passed)} cases; {cause}")


def not_run(ended: Sequence[Outcome]) -> Judged | None:
    """The judgement when the sandbox could not run some program: nothing is said about the candidate then."""
    for outcome in ended:
        if outcome.ending is Ending.UNSUPPORTED:
            return Judged(0, 0, common_pb2.VERDICT_UNSUPPORTED, outcome.reason or "no sandbox at or above the floor")
        if outcome.ending is Ending.SANDBOX_ERROR:
            return Judged(0, 0, common_pb2.VERDICT_SANDBOX_ERROR, outcome.reason or "the sandbox failed")
    return None


def ended_early(outcome: Outcome) -> str:
    """Why a program that did not answer ended, for people; empty if it exited with status 0."""
    if outcome.ending is Ending.EXITED:
        return f"exit status {outcome.code}" if outcome.code else ""
    if outcome.ending is Ending.SIGNALED:
        return f"signal {outcome.code}"
    return outcome.reason or str(outcome.ending)
