"""One judging, step by step: which programs to run next, or the judgement. Pure; any confined worker can take any step.

a check that can be read     1 run: driver and candidate                            functional
a check that cannot          check and candidate in turns, in separate sandboxes    replay
inputs and outputs           a run a case; in growing batches if one failure decides  stdio
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from crescendo.common.errors import DataError
from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.checks import FunctionalTests, parse_check, split_check
from crescendo.reward_service.judge.code_tests import CheckText, FunctionTests, StdioTests, read_tests
from crescendo.reward_service.judge.expressions import NotClosedError
from crescendo.reward_service.judge.functional import Budget, functional_program, judge_functional
from crescendo.reward_service.judge.inside.wire import WireError
from crescendo.reward_service.judge.replay import replay_step
from crescendo.reward_service.judge.stdio import Comparison, judge_stdio, stdio_programs
from crescendo.reward_service.judge.verdicts import Judged, not_run
from crescendo.reward_service.sandbox.protocol import Outcome, Program

FIRST_BATCH = 2
MAX_STEPS = 20

Step = Judged | Sequence[Program]


@dataclass(frozen=True)
class Rules:
    """How to judge. stop_early: one failed case decides, so cases that come after it need not run."""

    budget: Budget = field(default_factory=Budget)
    comparison: Comparison = field(default_factory=Comparison)
    stop_early: bool = True


def judge_step(source: str, tests: str, ended: Sequence[Outcome], rules: Rules) -> Step:
    """The programs to run next, or the judgement. source: the candidate; tests: see code_tests."""
    stopped = not_run(ended)
    if stopped is not None:
        return stopped
    try:
        found = read_tests(tests)
        if isinstance(found, StdioTests):
            return _stdio_step(source, found, ended, rules)
        if isinstance(found, FunctionTests):
            return _functional_step(source, found.for_program(source), ended, rules)
        return _check_step(source, found, ended, rules)
    except (DataError, NotClosedError) as error:
        return Judged(0, 0, common_pb2.VERDICT_UNSUPPORTED, str(error))
    except WireError:
        return Judged(0, 0, common_pb2.VERDICT_UNPARSABLE, "the code or a call is too large")


def _check_step(source: str, check: CheckText, ended: Sequence[Outcome], rules: Rules) -> Step:
    try:
        tests = parse_check(check.source, check.entry_point)
    except NotClosedError:
        step = replay_step(source, split_check(check.source, check.entry_point), ended, rules.budget)
        return step if isinstance(step, Judged) else [step]
    return _functional_step(source, tests, ended, rules)


def _functional_step(source: str, tests: FunctionalTests, ended: Sequence[Outcome], rules: Rules) -> Step:
    if not ended:
        return [functional_program(source, tests.entry, tests.calls, rules.budget)]
    return judge_functional(tests, ended[0])


def _stdio_step(source: str, tests: StdioTests, ended: Sequence[Outcome], rules: Rules) -> Step:
    judged = judge_stdio(tests.cases[: len(ended)], ended, rules.comparison)
    has_failed = bool(ended) and not judged.is_correct
    if len(ended) >= len(tests.cases) or (has_failed and rules.stop_early):
        return judge_stdio(tests.cases, ended, rules.comparison)
    size = max(FIRST_BATCH, len(ended)) if rules.stop_early else len(tests.cases)
    return stdio_programs(source, tests.cases[len(ended) : len(ended) + size], rules.budget)
