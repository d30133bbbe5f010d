"""Demonstrations: the right tokens, every example once an epoch, the same after a resumption."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from crescendo.common.config.schema import DataConfig, DataSourceConfig, SftStepConfig
from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data import demonstrations, load_prompts

PLAIN = DataConfig(chat_template=False)
TASK = DataSourceConfig(name="task", path="clock_sum")


def file_source(tmp_path: Path, rows: list[Any]) -> DataSourceConfig:
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSourceConfig(path=str(path))


def test_task_examples_end_with_the_end_of_sequence_and_can_be_resumed(characters: Tokenizer) -> None:
    config = SftStepConfig(steps=10, batch_size=4, data=TASK)
    examples = list(demonstrations(config, PLAIN, characters, seed=3))
    assert len(examples) == 40
    assert all(example.response_token_ids[-1] == characters.eos_token_ids[0] for example in examples)
    assert characters.decode(examples[0].prompt_token_ids).endswith("?")
    assert list(demonstrations(config, PLAIN, characters, seed=3, first_example=13)) == examples[13:]
    assert list(demonstrations(config, PLAIN, characters, seed=4)) != examples
    # Answers without a thought come at the end of the warm-up only.
    direct = [len(example.response_token_ids) == 3 for example in examples]
    assert not any(direct[:34])
    assert any(direct[34:])


def test_the_validation_set_is_never_demonstrated(characters: Tokenizer) -> None:
    options = {"min_terms": "3", "max_terms": "3", "warmup_max_terms": "3"}
    source = DataSourceConfig(name="task", path="clock_sum", num_prompts=200, options=options)
    held = load_prompts(source, PLAIN, characters, field="data.validation")
    config = SftStepConfig(
        steps=50, batch_size=8, data=DataSourceConfig(name="task", path="clock_sum", options=options)
    )
    shown = {
        tuple(example.prompt_token_ids)
        for example in demonstrations(config, PLAIN, characters, 0, held_out=held.fingerprints)
    }
    assert not shown & {tuple(prompt.token_ids) for prompt in held.prompts}
    assert len(shown) > 30


def test_file_examples_come_once_an_epoch_in_a_new_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"question": f"q{i}", "response": f"r{i}"} for i in range(7)]
    config = SftStepConfig(steps=7, batch_size=3, data=file_source(tmp_path, rows))
    responses = [
        tokenizer.decode(example.response_token_ids, skip_special_tokens=False)
        for example in demonstrations(config, DataConfig(), tokenizer, seed=0)
    ]
    assert len(responses) == 21
    epochs = [responses[start : start + 7] for start in (0, 7, 14)]
    for epoch in epochs:
        assert sorted(epoch) == [f"r{i}<|end|>" for i in range(7)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    resumed = demonstrations(config, DataConfig(), tokenizer, seed=0, first_example=11)
    assert [
        tokenizer.decode(example.response_token_ids, skip_special_tokens=False) for example in resumed
    ] == responses[11:]


def test_prompts_are_rendered_as_in_reinforcement_learning(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = DataConfig(system_prompt="S", template="<{question}>")
    demo = file_source(tmp_path, [{"question": "q", "response": "thought <|end|>"}])
    example = next(iter(demonstrations(SftStepConfig(data=demo), data, tokenizer, 0)))
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a"}))
    prompt = load_prompts(DataSourceConfig(path=str(path)), data, tokenizer).prompts[0]
    assert list(example.prompt_token_ids) == list(prompt.token_ids)
    assert Counter(example.response_token_ids)[tokenizer.eos_token_ids[0]] == 1


def test_bad_demonstrations_are_set_aside_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = [{"question": f"q{i}", "response": "r"} for i in range(9)]
    set_aside: list[Any] = []
    config = SftStepConfig(steps=1, batch_size=9, data=file_source(tmp_path, [*good, {"question": "q"}]))
    examples = list(demonstrations(config, DataConfig(), tokenizer, 0, quarantine=set_aside.append))
    assert len(examples) == 9
    assert set_aside[0]["reason"] == "response is missing (column 'response')"
    config = SftStepConfig(data=file_source(tmp_path, [*good, {}, {}, {}]))
    with pytest.raises(DataError, match="3 of 12 rows"):
        next(demonstrations(config, DataConfig(), tokenizer, 0))
    with pytest.raises(DataError, match="no usable row"):
        next(demonstrations(SftStepConfig(data=file_source(tmp_path, [])), DataConfig(), tokenizer, 0))


def test_a_tokenizer_that_lacks_the_tasks_characters_is_an_error(tmp_path: Path) -> None:
    from crescendo.common.config.schema import ScratchModelConfig
    from crescendo.common.models import write_scratch_model

    write_scratch_model(tmp_path, ScratchModelConfig(vocabulary="0123456789.$"), 0)
    with pytest.raises(DataError, match="knows the task's characters"):
        next(demonstrations(SftStepConfig(data=TASK), PLAIN, Tokenizer.from_folder(tmp_path), 0))


def test_a_task_whose_problems_are_all_held_out_is_an_error(characters: Tokenizer) -> None:
    options = {"min_terms": "1", "max_terms": "1", "warmup_max_terms": "1"}
    source = DataSourceConfig(name="task", path="clock_sum", num_prompts=30, options=options)
    held = load_prompts(source, PLAIN, characters)
    examples = demonstrations(SftStepConfig(data=source), PLAIN, characters, 0, held_out=held.fingerprints)
    with pytest.raises(DataError, match="not held out"):
        list(islice(examples, 1))
