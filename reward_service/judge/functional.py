"""Functional tests: the program that answers the calls, and the judgement of its answers.

    parse_check(text)            calls | assertions with holes          here, without running anything
    functional_program(...)      driver + candidate + calls             into the sandbox; no expected value
    judge_functional(...)        answers -> assertions                  here, on plain built-ins

A pass needs an answer to every call and every assertion true of the answers. The candidate shares its process with the
driver, so it can forge an answer; a forged answer must still equal what it cannot know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.reward_service.judge.bundle import bundled
from crescendo.reward_service.judge.checks import Call, Entry, FunctionalTests
from crescendo.reward_service.judge.inside.channel import BEFORE_CASES, HEAD, LATE, RAISED, UNSENDABLE, VALUE
from crescendo.reward_service.judge.inside.wire import MAX_BYTES, WireError, decode, encode
from crescendo.reward_service.judge.libraries import library_files
from crescendo.reward_service.judge.verdicts import Judged, ended_early, tally
from crescendo.reward_service.sandbox.protocol import MIB, Ending, Limits, Outcome, Program

PROFILE = "python"
OUTPUT_BYTES = 2 * MAX_BYTES


@dataclass(frozen=True)
class Budget:
    """What judging one candidate may use. total_s: of one run in the sandbox; value_bytes: of one answer."""

    case_s: float = 4.0
    total_s: float = 10.0
    memory_bytes: int = 512 * MIB
    value_bytes: int = 1 * MIB

    @property
    def limits(self) -> Limits:
        """As the sandbox reads them."""
        return Limits(
            wall_s=self.total_s, cpu_s=self.total_s, memory_bytes=self.memory_bytes, output_bytes=OUTPUT_BYTES
        )


@dataclass(frozen=True)
class Answer:
    """What came back for one call. status: VALUE, RAISED, LATE or UNSENDABLE."""

    status: bytes
    payload: bytes

    @property
    def cause(self) -> str:
        """Why it is no value, for people."""
        if self.status == LATE:
            return "a case passed its deadline"
        try:
            told = decode(self.payload)
        except WireError as error:
            return str(error)
        parts = told if isinstance(told, list) else [told]
        return ": ".join(part for part in parts if part and isinstance(part, str)) or "no value"


@dataclass(frozen=True)
class Answers:
    """What a driver's stream held. problem: why the run has not answered every call; empty if it has."""

    answers: tuple[Answer, ...]
    problem: str = ""
    is_late: bool = False


def functional_program(
    source: str, entry: Entry, calls: Sequence[Call], budget: Budget, *, with_arguments: bool = False
) -> Program:
    """The run that answers the calls; raises WireError if they are too large to travel."""
    task = {
        "source": source,
        "entry": list(entry),
        "calls": [[list(call.arguments), call.named] for call in calls],
        "case_s": budget.case_s,
        "value_bytes": budget.value_bytes,
        "with_arguments": with_arguments,
    }
    files = {**library_files(source), "main.py": bundled("driver")}
    return Program(PROFILE, files, encode(task), limits=budget.limits)


def read_answers(outcome: Outcome, num_calls: int) -> Answers:
    """The driver's stream, one frame a call in order; anything else in it spoils the whole."""
    answers: list[Answer] = []
    data, at = outcome.stdout, 0
    while at + HEAD.size <= len(data):
        number, status, length = HEAD.unpack_from(data, at)
        end = at + HEAD.size + length
        if end > len(data):
            break
        payload = data[at + HEAD.size : end]
        at = end
        answer = Answer(status, payload)
        if number == BEFORE_CASES and not answers and at == len(data):
            return Answers((), answer.cause, status == LATE)
        if number != len(answers) or number >= num_calls or status not in (VALUE, RAISED, LATE, UNSENDABLE):
            return Answers((), "the candidate wrote into the answers")
        answers.append(answer)
    is_late = outcome.ending is Ending.TIMEOUT or any(answer.status == LATE for answer in answers)
    has_ended = outcome.ending is Ending.EXITED and not outcome.is_stdout_truncated
    if at < len(data) and has_ended:
        return Answers((), "the candidate wrote into the answers")
    if len(answers) == num_calls:
        # The driver exits once every call is answered; a run that ended otherwise was not ended by the driver.
        return Answers(tuple(answers), "", is_late) if has_ended else Answers((), ended_early(outcome), is_late)
    how = ended_early(outcome) or "it left"
    return Answers(tuple(answers), f"{len(answers)} of {num_calls} calls answered; {how}", is_late)


def judge_functional(tests: FunctionalTests, outcome: Outcome) -> Judged:
    """Compares the answers of one run with the tests."""
    found = read_answers(outcome, len(tests.calls))
    values, causes = _values(found, len(tests.calls))
    passed: list[bool] = []
    told: list[str] = []
    for case in tests.cases:
        why = next((causes[call] for call in case.calls if causes[call]), "")
        holds = not why and case.holds(values)
        passed.append(holds)
        told.append("" if holds else why or "an answer is not what the check expects")
    return tally(passed, told, found.is_late)


def _values(found: Answers, num_calls: int) -> tuple[list[object], list[str]]:
    """Decoded answers by call, and for those that are none the cause."""
    values: list[object] = [None] * num_calls
    causes = [found.problem or "not answered"] * num_calls
    for number, answer in enumerate(found.answers):
        if answer.status != VALUE:
            causes[number] = answer.cause
            continue
        try:
            values[number] = decode(answer.payload)
            causes[number] = ""
        except WireError as error:
            causes[number] = str(error)
    return values, causes
