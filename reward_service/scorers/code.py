"""code: the response's program passes its tests: functional checks, or cases of standard input and output.

The tests are the metadata column named by the option `tests`, else the first gold answer; judge/code_tests.py tells
their forms. The program runs in the sandbox; whether it passed is found out here, in a confined worker that never runs
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.functional import Budget
from crescendo.reward_service.judge.stdio import Comparison
from crescendo.reward_service.judge.steps import MAX_STEPS, Rules, judge_step
from crescendo.reward_service.judge.verdicts import Judged
from crescendo.reward_service.sandbox import protocol
from crescendo.reward_service.scorers.base import Outcome, Sample, SandboxScorer, unparsable
from crescendo.reward_service.scorers.code_extract import LANGUAGES, last_code_block
from crescendo.reward_service.scorers.extract import after_last
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class TestOptions:
    """Options of every scorer that runs programs."""

    tests: str = option("tests", "metadata column with the tests; the first gold answer where there is none")
    language: str = option("python", "language of the program, and tag of its block", choices=tuple(LANGUAGES))
    compare: str = option(
        "tokens",
        "output: tokens (white space separates, none counts at the ends) or exact",
        choices=("tokens", "exact"),
    )
    tolerance: float = option(
        0.0, "absolute or relative difference allowed between numbers in output compared by tokens", at_least=0.0
    )
    case_s: float = option(4.0, "deadline of one call of a functional test", unit="seconds", above=0)
    run_s: float = option(10.0, "deadline of one run: all calls of a functional test, or one input", unit="s", above=0)
    memory_mib: int = option(512, "memory of one run", unit="MiB", at_least=16)

    def rules(self, *, stop_early: bool) -> Rules:
        """As the judge reads them."""
        return Rules(
            budget=Budget(self.case_s, self.run_s, self.memory_mib * protocol.MIB),
            comparison=Comparison(self.compare == "exact", self.tolerance),
            stop_early=stop_early,
        )


@dataclass(frozen=True)
class CodeOptions(TestOptions):
    """Options of code."""

    reward: str = option(
        "all", "all: 1 if every case passes, else 0; fraction: the share that passes", choices=("all", "fraction")
    )
    after: str = option("", "read only what follows its last occurrence, such as </think>")


def tests_of(sample: Sample, options: TestOptions) -> str:
    """The text of the tests; empty if the data has none."""
    return sample.metadata.get(options.tests) or (sample.gold_answers[0] if sample.gold_answers else "")


def step(
    sample: Sample, options: CodeOptions, ended: Sequence[protocol.Outcome]
) -> Outcome | Sequence[protocol.Program]:
    """The programs to run next; in the end 1 or 0, or the share of cases that passed."""
    text = after_last(sample.text, options.after)
    source = None if text is None else last_code_block(text, options.language)
    if source is None:
        return unparsable(f"no closed ``` block of {options.language}")
    is_fraction = options.reward == "fraction"
    found = judge_step(source, tests_of(sample, options), ended, options.rules(stop_early=not is_fraction))
    return _outcome(found, is_fraction) if isinstance(found, Judged) else found


def _outcome(judged: Judged, is_fraction: bool) -> Outcome:
    raw = judged.share if is_fraction else float(judged.is_correct)
    has_run = judged.verdict not in (common_pb2.VERDICT_UNSUPPORTED, common_pb2.VERDICT_SANDBOX_ERROR)
    return Outcome(raw if has_run else 0.0, judged.verdict, judged.detail)


SCORER = SandboxScorer(
    name="code",
    source="k1.5, section 2.3.5 (tests of coding problems); DeepSeek-R1-Zero, 2.2.2 (a compiler and test cases)",
    low=0.0,
    high=1.0,
    options=CodeOptions,
    step=step,
    max_steps=MAX_STEPS,
)
