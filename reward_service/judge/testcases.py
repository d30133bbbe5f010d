"""Test cases for a coding problem: its generator makes inputs, its reference solutions outputs, both in the sandbox.

    generator, once a case  ->  inputs  ->  every reference on every input  ->  outputs  ->  selection

Called by `crescendo testcases`. Programs never run outside the sandbox; their output is only split into words here.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

from crescendo.common.errors import CrescendoError, EnvironmentProblem, WorkerLostError
from crescendo.reward_service.judge.selection import Selection, SelectionRules, select
from crescendo.reward_service.judge.together import together
from crescendo.reward_service.sandbox.protocol import MIB, Ending, Limits, Outcome, Program, Sandbox

PROFILE = "python"
MAX_LATE = 3  # cases on which a reference may run out of time before it is given up
ATTEMPTS = 3

WriteGenerator = Callable[[str], Awaitable[str | None]]  # a problem's statement to the text of a generator program


@dataclass(frozen=True)
class Problem:
    """A problem as the data set has it. generator: program text, empty if one is to be written."""

    problem_id: str
    statement: str
    solutions: tuple[str, ...]
    generator: str = ""
    special_judge: bool = False


@dataclass(frozen=True)
class Generated:
    """What became of a problem. rule: why it goes, as a name; empty if it stays."""

    selection: Selection
    rule: str = ""
    reason: str = ""
    generator: str = ""
    facts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRules:
    """How programs run. concurrency: at once; deadline_s: the wait for a free place included."""

    selection: SelectionRules = field(default_factory=SelectionRules)
    case_s: float = 10.0
    memory_bytes: int = 512 * MIB
    output_bytes: int = 4 * MIB
    concurrency: int = 4
    deadline_s: float = 120.0
    seed: int = 0

    @property
    def limits(self) -> Limits:
        """Of one run."""
        return Limits(
            wall_s=self.case_s, cpu_s=self.case_s, memory_bytes=self.memory_bytes, output_bytes=self.output_bytes
        )


class Generation:
    """`await generate(problem)` for one problem after the other."""

    def __init__(self, sandbox: Sandbox, rules: RunRules, write_generator: WriteGenerator | None = None) -> None:
        rules.selection.check()
        self._sandbox = sandbox
        self._rules = rules
        self._write_generator = write_generator
        self._places = asyncio.Semaphore(rules.concurrency)

    async def generate(self, problem: Problem) -> Generated:
        """Test cases of a problem, or why there are none; raises what the sandbox raises, after some attempts."""
        wanted = self._rules.selection
        if problem.special_judge:
            return _gone("special_judge", "a special judge decides")
        if len(problem.solutions) < wanted.num_references:
            return _gone(
                "too_few_references",
                f"{len(problem.solutions)} reference solutions, fewer than {wanted.num_references}",
            )
        generator = problem.generator or await self._written(problem)
        if not generator:
            return _gone("no_generator", "no program that makes inputs")
        inputs, causes = await self._inputs(problem, generator)
        if len(inputs) < wanted.min_valid:
            most = ", ".join(f"{cause}: {count}" for cause, count in causes.most_common(3))
            return _gone("bad_generator", f"{len(inputs)} inputs, fewer than {wanted.min_valid} ({most})", generator)
        rng = random.Random(f"{self._rules.seed} {problem.problem_id}")
        references = rng.sample(problem.solutions, wanted.num_references)
        columns = await together(self._column(source, inputs) for source in references)
        selection = select(inputs, list(zip(*columns, strict=True)), wanted)
        rule = ""
        if selection.reason:
            rule = "too_few_valid_cases" if len(selection.inputs) < wanted.min_valid else "references_fail"
        facts = {"num_inputs": len(inputs), "num_valid": len(selection.inputs), "num_passing": selection.num_passing}
        return Generated(selection, rule, selection.reason, generator, facts)

    async def _written(self, problem: Problem) -> str | None:
        return None if self._write_generator is None else await self._write_generator(problem.statement)

    async def _inputs(self, problem: Problem, generator: str) -> tuple[list[str], Counter[str]]:
        """Distinct inputs in order, and why others failed."""
        count = self._rules.selection.num_cases
        program_files = {"main.py": generator.encode("utf-8", "replace"), "cases.py": _library()}
        programs = [
            Program(
                PROFILE,
                program_files,
                environment={"SEED": f"{self._rules.seed} {number} {count}"},
                limits=self._rules.limits,
            )
            for number in range(1, count + 1)
        ]
        outcomes = await together(self._run(program) for program in programs)
        texts: dict[str, None] = {}
        causes: Counter[str] = Counter()
        for outcome in outcomes:
            text = _output(outcome)
            if text is None:
                causes[_why(outcome)] += 1
            elif not text.strip():
                causes["it wrote nothing"] += 1
            elif text in texts:
                causes["an input twice"] += 1
            else:
                texts[text] = None
        return list(texts), causes

    async def _column(self, source: str, inputs: Sequence[str]) -> list[str | None]:
        """What one reference writes for each input; one that is late too often is not run on the rest."""
        found: list[str | None] = [None] * len(inputs)
        num_late = 0
        for case, text in enumerate(inputs):
            if num_late == MAX_LATE:
                break
            program_files = {"main.py": source.encode("utf-8", "replace")}
            outcome = await self._run(Program(PROFILE, program_files, text.encode(), limits=self._rules.limits))
            num_late += outcome.ending is Ending.TIMEOUT
            found[case] = _output(outcome)
        return found

    async def _run(self, program: Program) -> Outcome:
        """Runs a program, again if the service was at fault."""
        async with self._places:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    outcome = await self._sandbox.run(program, self._rules.deadline_s)
                except CrescendoError as error:
                    if not error.retryable or attempt == ATTEMPTS:
                        raise
                    await asyncio.sleep(error.retry_after_s)
                    continue
                if outcome.ending is Ending.UNSUPPORTED:
                    raise EnvironmentProblem(outcome.reason, field="sandbox", fix="Run `crescendo doctor`.")
                if outcome.ending is not Ending.SANDBOX_ERROR:
                    return outcome
        raise WorkerLostError(f"the sandbox failed {ATTEMPTS} times: {outcome.reason}")


@lru_cache
def _library() -> bytes:
    return (files("crescendo.reward_service.judge.inside") / "cases.py").read_bytes()


def _output(outcome: Outcome) -> str | None:
    if not outcome.is_clean_exit:
        return None
    try:
        return outcome.stdout.decode()
    except UnicodeDecodeError:
        return None


def _why(outcome: Outcome) -> str:
    if outcome.ending is not Ending.EXITED:
        return str(outcome.ending)
    last = outcome.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return last[:80] or f"exit status {outcome.code}"


def _gone(rule: str, reason: str, generator: str = "") -> Generated:
    return Generated(Selection(reason=reason), rule, reason, generator)
