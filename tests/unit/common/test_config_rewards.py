"""What a run file may reward: names, options, stages that fill them in, reward models."""

from pathlib import Path

import pytest

from crescendo.common.config.load import load_config
from crescendo.common.config.rl import StageConfig
from crescendo.common.config.scorers import completed
from crescendo.common.errors import ConfigError

RECIPE = """
run: {name: test}
model: {source: hub/model}
data: {train: {path: "data.jsonl"}, validation: {path: "data.jsonl"}}
rewards:
  chains:
    math: [{scorer: math_answer, options: {extract: boxed}}]
steps:
  - kind: rl
    rl:
      stages:
        - {name: short, max_response_tokens: 8192, truncated: score}
        - {name: long, max_response_tokens: 16384, truncated: score}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("{}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, list(overrides))
    return str(caught.value)


def test_a_chain_of_each_kind_is_taken(recipe: Path) -> None:
    config = load_config(
        recipe,
        [
            "rewards.models.judge={url: 'https://judge.example', model: m, api_key_file: key}",
            "rewards.chains.math.1={scorer: reward_model, options: {model: judge, span: summary}}",
            "rewards.group.0={scorer: length_k15, weight: 0.2, from_iteration: 10}",
            "rewards.group.1={scorer: soft_overlong}",
        ],
    )
    assert config.rewards.chains["math"][1].options == {"model": "judge", "span": "summary"}
    assert config.rewards.models["judge"].api_key_file == str(recipe.parent / "key")
    assert config.rewards.group[0].from_iteration == 10


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rewards.chains.math.0.scorer=math_anser", "Did you mean math_answer?"),
        ("rewards.chains.math.0.scorer=length_k15", "length_k15 belongs in rewards.group"),
        ("rewards.chains.math.0.scorer=reward_model_answer", "there is no such scorer"),
        ("rewards.group.0={scorer: math_answer}", "math_answer belongs in rewards.chains"),
        ("rewards.group.0={scorer: soft_overlon}", "Did you mean soft_overlong?"),
        ("rewards.chains.math.0.options.extrakt=boxed", "Did you mean extract?"),
        ("rewards.chains.math.0.options.extract=box", "it must be one of boxed, tagged, last_number, any"),
        ("rewards.chains.math.1={scorer: format, options: {enclosed: maybe}}", "it must be true or false"),
        ("rewards.chains.math.1={scorer: repetition_penalty, options: {ngram: 0}}", "it must be at least 1"),
        ("rewards.chains.math.1={scorer: repetition_penalty, options: {ngram: many}}", "it must be a whole number"),
        ("rewards.chains.math.1={scorer: reward_model}", "options.model is not set"),
        ("rewards.chains.math.1={scorer: reward_model, options: {model: judge}}", "rewards.models has no such model"),
        ("rewards.group.0={scorer: soft_overlong, options: {cache_tokens: '10000'}}", "at most max_tokens, 8192"),
        ("rewards.models.judge={url: 'judge.example', model: m}", "must begin with http:// or https://"),
        ("rewards.models.judge={url: 'http://judge', model: m, protocol: grpc}", "it must be host:port"),
        ("rewards.models.judge={url: 'http://judge', model: m, low: 2}", "it must be below high"),
        ("rewards.models.judge={url: 'http://judge', model: m, path: score}", "it must begin with /"),
        ("rewards.models.judge={model: m}", "rewards.models.judge.url is not set"),
    ],
)
def test_what_is_refused(recipe: Path, override: str, said: str) -> None:
    assert said in refused(recipe, override)


def test_a_punishment_that_the_stage_would_erase_is_refused(recipe: Path) -> None:
    overrides = ("rewards.group.0={scorer: soft_overlong}", "steps.0.rl.stages.1.truncated=zero")
    assert "steps[0].rl.stages[1].truncated is zero" in refused(recipe, *overrides)
    load_config(recipe, [*overrides, "steps.0.rl.stages.1.reward_weights={soft_overlong: 0.0}"])


def test_a_stage_fills_options_in() -> None:
    stage = StageConfig(max_response_tokens=8192)
    assert completed("soft_overlong", {}, stage) == {"max_tokens": "8192"}
    assert completed("soft_overlong", {"max_tokens": "100"}, stage) == {"max_tokens": "100"}
    assert completed("soft_overlong", {}, None) == {}
    assert completed("math_answer", {"extract": "any"}, stage) == {"extract": "any"}
