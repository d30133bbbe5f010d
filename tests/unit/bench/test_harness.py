"""The benchmarks' harness and the plan of e2e: a wrong harness measures nothing."""

import json
import random
import statistics

import pytest

from tests.bench.e2e_plan import MIXES, clock_sum, make_plan
from tests.bench.harness import Measured, rounded, take_turns


def test_sides_take_turns_in_alternating_order() -> None:
    called: list[str] = []

    def side(name: str, value: float) -> float:
        called.append(name)
        return value

    found = take_turns({"ours": lambda: side("ours", 2.0), "baseline": lambda: side("baseline", 1.0)}, 3, warmup=1)
    assert called == ["ours", "baseline", "baseline", "ours", "ours", "baseline", "baseline", "ours"]
    assert found == {"ours": [2.0] * 3, "baseline": [1.0] * 3}


def test_the_line_is_one_json_object() -> None:
    line = Measured("e2e", 30.0, 20.0, "tokens/s", {"steps": 20}).line()
    assert "\n" not in line
    loaded = json.loads(line)
    assert (loaded["ours"], loaded["baseline"], loaded["ratio"]) == (30.0, 20.0, 1.5)
    assert loaded["machine"]["cores"] >= 1


@pytest.mark.parametrize(("value", "expected"), [(1234.5678, 1235.0), (0.00123456, 0.001235), (0.0, 0.0)])
def test_rounding_keeps_significant_digits(value: float, expected: float) -> None:
    assert rounded(value) == expected


def lengths_of(mix: str, steps: int) -> list[int]:
    """All lengths of a plan."""
    return [length for step in make_plan(mix, steps).steps for group in step.lengths for length in group]


@pytest.mark.parametrize("mix", MIXES)
def test_plans_repeat_and_have_the_batch_size(mix: str) -> None:
    plan = make_plan(mix, 3)
    assert plan == make_plan(mix, 3)
    assert plan.steps[:2] == make_plan(mix, 2).steps
    for step in plan.steps:
        assert len(step.prompts) == len(step.answers) == len(step.lengths) == 16
        assert all(len(group) == 16 for group in step.lengths)
        assert all(1 <= length <= plan.max_response_tokens for group in step.lengths for length in group)


def test_the_long_tail_is_as_promised() -> None:
    lengths = lengths_of("long_tail", 40)
    assert 31 <= statistics.median(lengths) <= 33
    assert 0.09 <= sum(length >= 128 for length in lengths) / len(lengths) <= 0.11
    assert max(lengths) > 500


def test_the_demo_mix_stays_below_its_context() -> None:
    lengths = lengths_of("demo", 20)
    assert (min(lengths), max(lengths)) == (15, 95)


def test_prompts_have_the_tasks_answers() -> None:
    prompt, answer = clock_sum(random.Random(4), 5)
    digits = [int(character) for character in prompt if character.isdigit()]
    assert len(digits) == 6
    assert int(answer) == sum(digits) % 10
