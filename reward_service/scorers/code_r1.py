"""code_r1: Code-R1's table: -1.1 without the form or without code, 0.1 with both but a failing test, 1.1 if all pass.

The form is <think>...</think>, then <answer>...</answer> at the end; the program is the answer's last code block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.steps import MAX_STEPS, judge_step
from crescendo.reward_service.judge.verdicts import Judged
from crescendo.reward_service.sandbox import protocol
from crescendo.reward_service.scorers.base import Outcome, Sample, SandboxScorer
from crescendo.reward_service.scorers.code import TestOptions, tests_of
from crescendo.reward_service.scorers.code_extract import last_code_block
from crescendo.reward_service.scorers.extract import last_tagged
from crescendo.reward_service.typed_options import option

BAD_FORM, FAILED, PASSED = -1.1, 0.1, 1.1


@dataclass(frozen=True)
class CodeR1Options(TestOptions):
    """Options of code_r1."""

    prefilled: bool = option(False, "the prompt ends with <think>, so the response lacks it")


def step(
    sample: Sample, options: CodeR1Options, ended: Sequence[protocol.Outcome]
) -> Outcome | Sequence[protocol.Program]:
    """The programs to run next; in the end a value of the table. 0 where no test could be run."""
    text = ("<think>" if options.prefilled else "") + sample.text
    answer = last_tagged(text, "answer") if has_form(text) else None
    if answer is None:
        return Outcome(BAD_FORM, common_pb2.VERDICT_UNPARSABLE, "not <think>...</think> <answer>...</answer>")
    source = last_code_block(answer, options.language)
    if not source or not source.strip():
        return Outcome(BAD_FORM, common_pb2.VERDICT_UNPARSABLE, "the answer has no code")
    found = judge_step(source, tests_of(sample, options), ended, options.rules(stop_early=True))
    if not isinstance(found, Judged):
        return found
    if found.verdict in (common_pb2.VERDICT_UNSUPPORTED, common_pb2.VERDICT_SANDBOX_ERROR):
        return Outcome(0.0, found.verdict, found.detail)
    return Outcome(PASSED if found.is_correct else FAILED, found.verdict, found.detail)


def has_form(text: str) -> bool:
    """Whether text begins with thinking and ends with an answer, in this order."""
    stripped = text.strip()
    thought = stripped.find("</think>")
    answer = stripped.find("<answer>", thought)
    return (
        stripped.startswith("<think>")
        and 0 <= thought < answer
        and stripped.endswith("</answer>")
        and stripped.find("</answer>", answer) >= 0
    )


SCORER = SandboxScorer(
    name="code_r1",
    source="Code-R1 (ganler/code-r1), its reward table: -1.1, 0.1, 1.1; all tests must pass",
    low=BAD_FORM,
    high=PASSED,
    options=CodeR1Options,
    step=step,
    max_steps=MAX_STEPS,
)
