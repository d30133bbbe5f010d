"""Rewards that papers define over a judged answer: DeepScaleR, R1-Zero, E2H, AdaptThink."""

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers import Sample, adapt_think, deepscaler, e2h_gate, r1_zero

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED


@pytest.mark.parametrize(
    ("text", "prompt", "raw"),
    [
        (r"<think>a</think>\boxed{7}", "", 1.0),
        (r"a</think>\boxed{7}", "Why? <think>", 1.0),  # the prompt's tag counts
        (r"a</think>\boxed{7}", "Why?", 0.0),
        (r"<think>a \boxed{7}", "", 0.0),
        (r"<think>a \boxed{7}</think>", "", 0.0),  # the box must follow the thinking
        (r"<think>a</think>\boxed{8}", "", 0.0),
        (r"<think>a</think>\boxed{8}</think>\boxed{7}", "", 0.0),  # no second chance after another closing tag
        (r"<think>a \boxed{7}", "x </think>", 0.0),  # the closing tag must be the response's own
    ],
)
def test_deepscaler(text: str, prompt: str, raw: float) -> None:
    outcome = deepscaler.score(Sample(text, ("7",), prompt=prompt), deepscaler.DeepScalerOptions())
    assert outcome.raw == raw
    assert (outcome.verdict == CORRECT) == (raw == 1.0)


def test_deepscaler_with_a_template_that_opens_the_thinking() -> None:
    sample = Sample(r"a</think>\boxed{7}", ("7",))
    assert deepscaler.score(sample, deepscaler.DeepScalerOptions(prefilled=True)).raw == 1.0


@pytest.mark.parametrize(
    ("text", "raw", "verdict"),
    [
        ("<think>a</think><answer>7</answer>", 2.0, CORRECT),
        ("<think>a</think><answer>8</answer>", 1.0, WRONG),
        (r"so \boxed{7}", 1.0, CORRECT),
        ("no idea", 0.0, UNPARSABLE),
    ],
)
def test_r1_zero_is_accuracy_plus_format(text: str, raw: float, verdict: int) -> None:
    outcome = r1_zero.score(Sample(text, ("7",)), r1_zero.R1ZeroOptions())
    assert (outcome.raw, outcome.verdict) == (raw, verdict)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("<think>a</think><answer>7</answer>", 1.0),
        ("<think>a</think><answer>8</answer>", 0.1),
        (r"\boxed{7}", 0.0),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 0.0),
    ],
)
def test_e2h_asks_for_the_form_first(text: str, raw: float) -> None:
    assert e2h_gate.score(Sample(text, ("7",)), e2h_gate.GateOptions(format_value=0.1)).raw == raw


def test_e2h_with_a_text_answer() -> None:
    options = e2h_gate.GateOptions(judge="exact_match")
    assert e2h_gate.score(Sample("<think>a</think><answer> New  York</answer>", ("new york",)), options).raw == 1.0
    assert e2h_gate.score(Sample("<think>a</think><answer>York</answer>", ("new york",)), options).raw == 0.0


@pytest.mark.parametrize(
    ("text", "prompt", "raw"),
    [
        (r"</think>\boxed{7}", "Q", 0.05 + 1.0 - 0.75),
        (r"</think>\boxed{8}", "Q", 0.05 + 0.0 - 0.75),
        (r"Alright.</think>\boxed{7}", "Q", 1.0 - 0.75),
        (r"Alright \boxed{7}", "Q", -0.75),  # no closing tag
        (r"a</think>b</think>\boxed{7}", "Q", -0.75),
        (r"<think>a</think>\boxed{7}", "Q", -0.75),  # an extra opening tag
        (r"\boxed{7}", "Q</think>", 0.05 + 1.0 - 0.75),  # the mode was forced by the prompt
    ],
)
def test_adapt_think(text: str, prompt: str, raw: float) -> None:
    sample = Sample(text, ("7",), {"reference_reward": "0.75"}, prompt)
    assert adapt_think.score(sample, adapt_think.AdaptThinkOptions()).raw == pytest.approx(raw)


@pytest.mark.parametrize("reference", ["", "nan", "inf", "1.5", "-0.1", "most"])
def test_adapt_think_needs_the_references_mean(reference: str) -> None:
    sample = Sample(r"</think>\boxed{7}", ("7",), {"reference_reward": reference})
    assert adapt_think.score(sample, adapt_think.AdaptThinkOptions()).verdict == UNSUPPORTED
