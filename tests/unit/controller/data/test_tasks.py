"""Procedural tasks: right answers, problems that never repeat, demonstrations that keep their schedule."""

import itertools
import json
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.common.config.schema import DataConfig, DataSourceConfig
from crescendo.common.errors import ConfigError, DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data import load_prompts, open_source
from crescendo.controller.data.tasks import create_task

PLAIN = DataConfig(chat_template=False)
LABELS = "abcdefghijklmnopqrstuvwxyz"


def solve(question: str) -> list[int]:
    """The sums after each step, worked out anew from the question's text."""
    start = re.fullmatch(r"(\d)((?:[a-z]\d)+)\?", question)
    assert start is not None
    steps = re.findall(r"([a-z])(\d)", start.group(2))
    assert "".join(label for label, _ in steps) == LABELS[: len(steps)]
    return list(
        itertools.accumulate((int(step) for _, step in steps), lambda a, b: (a + b) % 10, initial=int(start.group(1)))
    )[1:]


def check_response(question: str, response: str) -> None:
    """Every step that a response writes is true."""
    sums = solve(question)
    steps = dict(re.findall(r"([a-z])(\d)", question))
    body, answer = response.split("#")
    assert int(answer) == sums[-1]
    position = 0
    for full_label, step, full_sum, jump_label, jump_sum in re.findall(r"([a-z])(\d)=(\d)|([a-z])>(\d)", body):
        label = full_label or jump_label
        index = LABELS.index(label)
        assert index == position if full_label else index > position
        assert not full_label or step == steps[label]
        assert int(full_sum or jump_sum) == sums[index]
        position = index + 1
    assert not body or position == len(sums)


@given(st.integers(0, 10**6))
def test_clock_sum_answers_are_right(seed: int) -> None:
    for problem in itertools.islice(create_task("clock_sum", {}).problems(seed), 20):
        sums = solve(problem.question)
        assert problem.answer == str(sums[-1])
        assert problem.difficulty == pytest.approx((len(sums) - 3) / 20)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_demonstrations_are_true_at_any_progress(seed: int, progress: float) -> None:
    generator = random.Random(seed)
    for _ in range(10):
        shown = create_task("clock_sum", {}).demonstration(generator, progress)
        check_response(shown.question, shown.response)


def test_demonstrations_follow_the_schedule() -> None:
    task = create_task("clock_sum", {})

    def sample(progress: float) -> list[tuple[int, str]]:
        generator = random.Random(7)
        shown = [task.demonstration(generator, progress) for _ in range(400)]
        return [(len(solve(item.question)), item.response) for item in shown]

    for progress, most in ((0.0, 10), (0.29, 10), (0.31, 23), (0.86, 23)):
        shown = sample(progress)
        assert max(terms for terms, _ in shown) == most
        assert all(len(response) == 4 * terms + 2 for terms, response in shown)
    mixture = sample(0.88)
    direct = [response for _, response in mixture if response.startswith("#")]
    jumping = [response for _, response in mixture if ">" in response]
    assert 0.33 < len(direct) / 400 < 0.47
    assert len(jumping) > 0.4 * 400


def test_the_source_gives_distinct_problems_evenly_by_length() -> None:
    source = open_source(DataSourceConfig(name="task", path="clock_sum", num_prompts=2000))
    rows = list(itertools.islice(source.rows(), 2000))
    questions = [row.values["question"] for row in rows]
    assert len(set(questions)) == 2000
    counts = Counter(len(solve(question)) for question in questions)
    assert set(counts) == set(range(3, 24))
    assert min(counts.values()) > 50


def test_seeds_make_different_problems_and_the_same_again(characters: Tokenizer) -> None:
    def ids(seed: int) -> list[str]:
        source = DataSourceConfig(name="task", path="clock_sum", num_prompts=50, seed=seed)
        return [prompt.prompt_id for prompt in load_prompts(source, PLAIN, characters).prompts]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_held_out_problems_are_replaced(characters: Tokenizer) -> None:
    options = {"min_terms": "3", "max_terms": "3"}
    source = DataSourceConfig(name="task", path="clock_sum", num_prompts=60, options=options)
    validation = load_prompts(source, PLAIN, characters, field="data.validation")
    train = load_prompts(source, PLAIN, characters, held_out=validation.fingerprints)
    assert len(train) == 60
    assert train.num_held_out == 60
    assert not train.fingerprints & validation.fingerprints


def test_a_task_that_runs_out_of_problems_says_so(characters: Tokenizer) -> None:
    options = {"min_terms": "1", "max_terms": "1"}
    source = DataSourceConfig(name="task", path="clock_sum", num_prompts=31, options=options)
    with pytest.raises(DataError, match="only 30 different problems"):
        load_prompts(source, PLAIN, characters)


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ("nonsense", {}, "no task"),
        ("clock_sum", {"max_term": "5"}, "no option 'max_term'"),
        ("clock_sum", {"max_terms": "many"}, "type int"),
        ("clock_sum", {"max_terms": "27"}, "<= 26"),
        ("clock_sum", {"min_terms": "0"}, "1 <= min_terms"),
        ("clock_sum", {"warmup_share": "0.9"}, "warmup_share"),
        ("clock_sum", {"direct_share": "1.5"}, "direct_share"),
        ("clock_sum", {"max_jump": "1"}, "max_jump"),
        ("clock_sum", {"jump_styles": "1.0"}, "jump_styles"),
        ("clock_sum", {"jump_styles": "2.0:1"}, "jump_styles"),
        ("clock_sum", {"jump_styles": "a:b"}, "jump_styles"),
        ("reasoning_gym/nonsense", {}, "refuses data set 'nonsense'"),
        ("reasoning_gym/leg_counting", {"legs": "4"}, "unexpected keyword"),
        ("reasoning_gym/leg_counting", {"min_animals": "-1"}, "must be positive"),
    ],
)
def test_wrong_options_are_named(path: str, options: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_source(DataSourceConfig(name="task", path=path, options=options, num_prompts=5))


def test_a_task_needs_a_number_of_problems() -> None:
    with pytest.raises(ConfigError, match="num_prompts is 0"):
        open_source(DataSourceConfig(name="task", path="clock_sum"))


def test_reasoning_gym_problems_carry_what_its_scorer_reads(tokenizer: Tokenizer) -> None:
    source = DataSourceConfig(
        name="task", path="reasoning_gym/leg_counting", num_prompts=6, options={"max_animals": "4"}, domain="gym"
    )
    prompts = load_prompts(source, DataConfig(), tokenizer)
    assert len(prompts) == 6
    prompt = prompts.prompts[0]
    assert prompt.domain == "gym"
    assert prompt.metadata["dataset"] == "leg_counting"
    assert json.loads(prompt.metadata["entry"])["answer"] == prompt.gold_answers[0]
    assert json.loads(prompt.metadata["entry"])["metadata"]["num_animals"] <= 4


def test_reasoning_gym_has_no_demonstrations() -> None:
    with pytest.raises(DataError, match="no demonstrations"):
        create_task("reasoning_gym/leg_counting", {}).demonstration(random.Random(0), 0.0)
