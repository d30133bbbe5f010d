"""Checks that cannot be read are run, in a sandbox of their own and never beside the candidate.

    check run      calls not answered yet are collected; the rest of the check is skipped through
    candidate run  answers every call known so far, from the first, in a fresh process
    check run      answers replayed; more calls, or the end
    ...

Each step follows from the outcomes so far alone. What the check's sandbox says counts, because no candidate code was
ever in it: it has seen the answers as plain values only. A check that needs more than MAX_ROUNDS rounds (one that makes
each call from the last answer) or that calls nothing is the data's fault: unsupported.
"""

import ast
from collections.abc import Sequence
from typing import Any

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.bundle import bundled
from crescendo.reward_service.judge.checks import Call, CheckSource
from crescendo.reward_service.judge.functional import PROFILE, Answers, Budget, functional_program, read_answers
from crescendo.reward_service.judge.inside.channel import HEAD
from crescendo.reward_service.judge.inside.check_driver import CALL, FAILED, PASSED
from crescendo.reward_service.judge.inside.wire import WireError, decode, encode
from crescendo.reward_service.judge.verdicts import Judged, ended_early, tally
from crescendo.reward_service.sandbox.protocol import Ending, Outcome, Program

MAX_ROUNDS = 7
MAX_STEPS = 2 * MAX_ROUNDS + 1


def replay_step(source: str, check: CheckSource, ended: Sequence[Outcome], budget: Budget) -> Judged | Program:
    """The judgement, or the program that is to run next. ended: outcomes so far, check and candidate in turns."""
    calls: list[bytes] = []
    answers = Answers(())
    for number, outcome in enumerate(ended):
        if number % 2:
            answers = read_answers(outcome, len(calls))
            continue
        found = _read_check(outcome, answers, len(calls))
        if isinstance(found, Judged):
            return found
        first, more = found
        calls = calls[:first] + more
    if len(ended) % 2:
        if len(ended) >= MAX_STEPS:
            return _unsupported(f"the check makes new calls after {MAX_ROUNDS} rounds")
        return _candidate_program(source, check, calls, budget)
    return _check_program(check, calls, answers, budget)


def _check_program(check: CheckSource, calls: list[bytes], answers: Answers, budget: Budget) -> Program:
    recorded = [[call, answer.status, answer.payload] for call, answer in zip(calls, answers.answers, strict=False)]
    recorded += [[call, b"-", b""] for call in calls[len(recorded) :]]
    task = {
        "source": ast.unparse(ast.Module(check.body, [])),
        "function": check.function,
        "candidate": "candidate" if check.function else str(check.entry[0]),
        "recorded": recorded,
        "value_bytes": budget.value_bytes,
    }
    return Program(PROFILE, {"main.py": bundled("check_driver")}, encode(task), limits=budget.limits)


def _candidate_program(source: str, check: CheckSource, calls: list[bytes], budget: Budget) -> Judged | Program:
    decoded: list[Call] = []
    for call in calls:
        try:
            parts: Any = decode(call)
        except WireError:
            return _unsupported("the check's calls cannot be read")
        decoded.append(Call(tuple(parts[0]), parts[1]))
    return functional_program(source, check.entry, decoded, budget, with_arguments=True)


def _read_check(outcome: Outcome, answers: Answers, num_calls: int) -> Judged | tuple[int, list[bytes]]:
    """The judgement, or the number of the first new call and the new calls."""
    collected: list[bytes] = []
    first, data, at = 0, outcome.stdout, 0
    while at + HEAD.size <= len(data):
        number, status, length = HEAD.unpack_from(data, at)
        payload = data[at + HEAD.size : at + HEAD.size + length]
        at += HEAD.size + length
        if status == CALL:
            first = first if collected else number
            collected.append(payload)
        elif collected:
            return first, collected
        elif status in (PASSED, FAILED):
            return _ended(status == PASSED and number > 0, payload, answers, number)
    if outcome.ending is Ending.EXITED:
        return _unsupported(f"the check could not be run: {ended_early(outcome)}")
    # The check itself took too long or too much: on answers of the candidate, so it counts against it.
    is_late = outcome.ending is Ending.TIMEOUT
    return tally([False], [f"the check did not end: {ended_early(outcome)}"], is_late)


def _ended(has_passed: bool, payload: bytes, answers: Answers, num_used: int) -> Judged:
    if not num_used and not answers.problem:
        return _unsupported("the check never calls the candidate")
    try:
        told = str(decode(payload))
    except WireError:
        told = ""
    return tally([has_passed], ["" if has_passed else answers.problem or told or "the check failed"], answers.is_late)


def _unsupported(detail: str) -> Judged:
    return Judged(0, 0, common_pb2.VERDICT_UNSUPPORTED, detail)
