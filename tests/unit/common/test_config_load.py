"""Loading a run file: spelling, types, overrides, bounds, rules, and the round trip through the run folder."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.common.config import Config, load_config, load_resolved, save_resolved
from crescendo.common.config.tree import camel_case
from crescendo.common.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "run": {"name": "try"},
    "model": {
        "source": "scratch",
        "scratch": {"vocabulary": "0123456789?=#.$", "max_positions": 128},
    },
    "data": {
        "train": {"name": "task", "path": "clock_sum", "num_prompts": 100, "options": {"max_n": 7}},
        "validation": {"name": "task", "path": "clock_sum", "num_prompts": 10, "seed": 1},
        "max_prompt_tokens": 32,
    },
    "rewards": {"chains": {"math": [{"scorer": "exact_match"}]}, "group": [{"scorer": "length_k15", "weight": 0.0}]},
    "steps": [
        {"kind": "sft", "sft": {"data": {"name": "task", "path": "clock_sum"}}},
        {
            "kind": "rl",
            "rl": {
                "stages": [
                    {"name": "short", "max_response_tokens": 32, "token_budget": 16},
                    {"name": "long", "max_response_tokens": 96, "reward_weights": {"length_k15": 1.0}},
                ]
            },
        },
    ],
}


def write(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def changed(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one value set; path steps are keys or list positions."""
    content = copy.deepcopy(MINIMAL)
    node: Any = content
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    for step in steps:
        node = node[step] if isinstance(step, int) else node.setdefault(step, {})
    node[last] = value
    return content


def test_a_good_file_becomes_plain_dataclasses(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert type(config) is Config
    assert type(config.steps[1].rl.stages[0]).__name__ == "StageConfig"
    assert type(config.rewards.chains["math"]) is list
    assert config.rewards.chains["math"][0].scorer == "exact_match"
    assert config.data.train.options == {"max_n": "7"}
    assert config.steps[1].rl.stages[1].reward_weights == {"length_k15": 1.0}


def test_camel_case_and_snake_case_mean_the_same(tmp_path: Path) -> None:
    def respell(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                camel_case(key) if "_" in key and key != "length_k15" else key: respell(v) for key, v in value.items()
            }
        return [respell(item) for item in value] if isinstance(value, list) else value

    content = respell(MINIMAL)
    content["data"]["train"]["options"] = {"max_n": 7}
    assert load_config(write(tmp_path, content)) == load_config(write(tmp_path, MINIMAL))


def test_both_spellings_of_one_key_are_refused(tmp_path: Path) -> None:
    content = changed("data.maxPromptTokens", 16)
    with pytest.raises(ConfigError, match="given twice"):
        load_config(write(tmp_path, content))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("run.sed", 3, "run.sed is not a key that exists in run. Fix: Did you mean seed"),
        ("run.zzzz", 3, "Known keys in run: name, seed, folder, deterministic"),
        ("rollout.num_engines", "two", "rollout.num_engines is 'two' (str); it must be a whole number"),
        ("rollout.num_engines", 1.5, "rollout.num_engines is 1.5 (float); it must be a whole number"),
        ("rollout.num_engines", True, "rollout.num_engines is True (bool); it must be a whole number"),
        ("rollout.num_engines", None, "rollout.num_engines is empty; it must be a whole number"),
        ("rollout.num_engines", 0, "rollout.num_engines is 0; it must be at least 1"),
        ("rollout.enforce_eager", 1, "it must be true or false"),
        ("rollout.flush_s", float("nan"), "rollout.flush_s is nan; it must be a finite number"),
        ("rollout.gpu_memory_utilization", 1.5, "it must be above 0, at most 1"),
        ("rollout", [1], "rollout is [1] (list); it must be a mapping"),
        ("steps", {"kind": "rl"}, "steps is {'kind': 'rl'} (dict); it must be a list"),
        ("model.dtype", "fp8", "model.dtype is 'fp8'; it must be one of float32, bfloat16"),
        ("model.revision", 7, 'Fix: Write for example revision: "7"'),
        ("run.name", "Bad Name", "run.name is 'Bad Name'; it must match"),
        ("run.name", "", "run.name is not set; it is required"),
        ("model.source", "", "model.source is not set"),
        ("steps", [], "steps is empty"),
        ("steps.1.rl.stages", [], "an RL step has at least one stage"),
        ("steps.0.kind", "rl", "steps[0].sft is set, but steps[0].kind is rl"),
        ("steps.1.rl.stages.1.name", "short", "which steps[1].rl.stages[0] has already"),
        ("steps.1.rl.stages.1.max_response_tokens", 16, "must be at least that of the stage before, 32"),
        ("steps.1.rl.stages.1.max_response_tokens", 97, "must fit in model.scratch.max_positions, 128"),
        ("steps.1.rl.stages.0.token_budget", 33, "it must be at most max_response_tokens, 32"),
        ("steps.1.rl.stages.0.samples_per_prompt", 1, "needs at least 2"),
        ("steps.1.rl.stages.0.prompts_per_iteration", 1, "reward"),
        ("steps.1.rl.algorithm", {"num_mini_batches": 200}, "it must be at most steps[1].rl.stages[0].prompts_per"),
        ("steps.1.rl.stages.1.reward_weights", {"lenght": 1.0}, "names 'lenght', which is in no chain"),
        ("steps.1.rl.stages.0.gate", {"name": "step", "iterations": 2000}, "or the gate never decides"),
        ("steps.1.rl.repetition", {"window_tokens": 100}, "it must be at least 512"),
        ("steps.1.rl.max_staleness", 2, "synchronous iterations only"),
        ("data.train.path", "", "data.train.path is not set"),
        ("data.train.domain", "code", "rewards.chains has no scorers"),
        ("data.train.columns", {"questoin": "q"}, "data.train.columns maps 'questoin'"),
        ("data.template", "hello", "it must contain {question}"),
        ("buffer.name", "external", "an external buffer needs a redis://"),
        ("buffer.url", "redis://localhost", "but buffer.name is embedded"),
        ("archive.url", "nosuch://bucket", "fsspec knows no nosuch://"),
        ("rollout.lease_s", 1.0, "it must be longer than rollout.flush_s"),
        ("trainer.tensor_parallel", 2, "trainer.tensor_parallel is 2; it must divide model.scratch.num_heads, 3"),
        ("trainer.pipeline_parallel", 2, "trainer.pipeline_parallel is 2; it must divide model.scratch.num_layers, 3"),
        ("trainer.expert_parallel", 2, "it must divide data_parallel * context_parallel, 1"),
        ("trainer.recompute", "some", "trainer.recompute"),
        ("model.scratch.num_kv_heads", 2, "it must divide num_heads, 3"),
        ("model.scratch.head_dim", 5, "rotary embeddings need it to be even"),
        ("model.scratch.vocabulary", "aab", "each once"),
        ("model.scratch.padding", "$", "not the last"),
        ("placement.name", "disaggregated", "Set trainer.weight_channel to tcp"),
        ("placement.rollout_devices", 1, "where trainer and engines share all devices"),
        ("steps.1.rl.stages.0.layout", {"devices": 2}, "placement.num_devices, the most that a stage may have, is 1"),
        ("steps.1.rl.stages.0.layout", {"tensor_parallel": 2}, "must divide model.scratch.num_heads, 3"),
        ("steps.1.rl.learning_rate.schedule", "cosine", "its last optimizer step is not known"),
        ("schema_version", 2, "schema_version is 2; it must be 1 to 1"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, path: str, value: Any, said: str) -> None:
    content = changed(path, value)
    if path.endswith("prompts_per_iteration"):
        content["steps"][1]["rl"]["algorithm"] = {"num_mini_batches": 2}
        said = "a group is not split"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    assert said in str(caught.value)
    assert "Fix: " in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rollout": {"num_engines": 2}}, "with run.deterministic it must be 1"),
        ({"rollout": {"prefix_caching": True}}, "with run.deterministic it must be false"),
        ({"trainer": {"data_parallel": 2}}, "trainer.data_parallel is 2; with run.deterministic it must be 1"),
        ({"trainer": {"context_parallel": 2}}, "trainer.context_parallel is 2; with run.deterministic it must be 1"),
        ({"placement": {"device": "gpu"}}, "with run.deterministic it must be cpu"),
        ({"trainer": {"threads": 0}}, "trainer.threads is 0, the machine's number of cores"),
    ],
)
def test_deterministic_runs_refuse_what_would_make_them_differ(
    tmp_path: Path, section: dict[str, Any], said: str
) -> None:
    content = {**changed("run.deterministic", True), **section}
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    assert said in str(caught.value)


def test_all_problems_come_together_without_those_that_follow(tmp_path: Path) -> None:
    content = changed("run", {"nmae": "x", "seed": "one"})
    content["steps"][1]["rl"]["stages"][0]["token_budget"] = 99
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    text = str(caught.value)
    assert "has 3 problems" in text
    assert "Did you mean name?" in text
    assert "run.seed is 'one'" in text
    assert "token_budget is 99" in text
    assert "run.name is not set" not in text, "the typo explains it"


def test_a_bad_list_item_keeps_its_neighbours_paths(tmp_path: Path) -> None:
    content = changed("steps.1.rl.stages.0", "short")
    content["steps"][1]["rl"]["stages"][1]["token_budget"] = 1000
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    assert "steps[1].rl.stages[0] is 'short' (str); it must be a mapping" in str(caught.value)
    assert "steps[1].rl.stages[1].token_budget is 1000" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("run.seed=7", lambda c: c.run.seed == 7),
        ("run.name=123", lambda c: c.run.name == "123"),
        ("steps.1.rl.stages.0.name=first", lambda c: c.steps[1].rl.stages[0].name == "first"),
        ("steps[1].rl.stages[0].name=first", lambda c: c.steps[1].rl.stages[0].name == "first"),
        ("steps[1].rl.stages[0].tokenBudget=8", lambda c: c.steps[1].rl.stages[0].token_budget == 8),
        ("steps.1.rl.learning_rate.peak=1e-5", lambda c: c.steps[1].rl.learning_rate.peak == 1e-5),
        ("data.train.options.max_n=9", lambda c: c.data.train.options == {"max_n": "9"}),
        ("rewards.chains.math.0.weight=2", lambda c: c.rewards.chains["math"][0].weight == 2.0),
        ("rewards.chains.code=[{scorer: format}]", lambda c: c.rewards.chains["code"][0].scorer == "format"),
        ("rollout.prefix_caching=true", lambda c: c.rollout.prefix_caching is True),
        ("steps.2.kind=sft", None),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: Any) -> None:
    path = write(tmp_path, MINIMAL)
    if read is None:
        with pytest.raises(ConfigError, match=r"steps\[2\].sft.data.path is not set"):
            load_config(path, [override])
    else:
        assert read(load_config(path, [override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.seed", "must have the form key=value"),
        ("=3", "must have the form key=value"),
        ("run.sede=3", "Did you mean seed"),
        ("steps.9.kind=rl", "leads through something that is not there"),
        ("steps.rl.kind=rl", "leads through something that is not there"),
        ("run.name.first=x", "leads through something that is not there"),
        ("run.seed=many", "run.seed is 'many' (str)"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert said in str(caught.value)


def test_references_are_resolved_and_bad_ones_named(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, changed("data.train.seed", "${run.seed}")), ["run.seed=5"]).data.train.seed == 5
    with pytest.raises(ConfigError, match=r"run\.sede"):
        load_config(write(tmp_path, changed("data.train.seed", "${run.sede}")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run: [", "is not a YAML mapping"),
        ("run: {name: a}\nrun: {name: b}", "is not a YAML mapping"),
        ("just text", "just text is not a key that exists at the top"),
        ("- 1", "is a list"),
        ("", "run.name is not set"),
    ],
)
def test_what_is_not_a_run_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)


def test_missing_binary_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(binary)
    binary.write_bytes(b" " * (1 << 21))
    with pytest.raises(ConfigError, match="is small"):
        load_config(binary)


def test_input_files_must_exist_and_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = changed("data.train", {"name": "jsonl", "path": "train.jsonl"})
    with pytest.raises(ConfigError, match="where there is no file"):
        load_config(write(tmp_path, content))
    (tmp_path / "train.jsonl").write_text("{}\n")
    config = load_config(write(tmp_path, content))
    assert config.data.train.path == str(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").unlink()
    save_resolved(config, tmp_path / "config.yaml")
    assert load_resolved(tmp_path / "config.yaml") == config, "a resolved file is read without its data"


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)


@settings(max_examples=15, deadline=None)
@given(template=texts, prompt=texts, seed=st.integers(0, 2**31), rate=st.floats(1e-12, 1, allow_nan=False))
def test_what_is_saved_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, template: str, prompt: str, seed: int, rate: float
) -> None:
    folder = tmp_path_factory.mktemp("round")
    config = load_config(write(folder, MINIMAL))
    config.data.template = "${a}{question}\\" + template
    config.data.system_prompt = prompt
    config.run.seed = seed
    config.steps[1].rl.learning_rate.peak = rate
    save_resolved(config, folder / "config.yaml")
    assert load_resolved(folder / "config.yaml") == config


def test_loading_does_not_share_state(tmp_path: Path) -> None:
    one, two = load_config(write(tmp_path, MINIMAL)), load_config(write(tmp_path, MINIMAL))
    one.steps[1].rl.stages[0].name = "other"
    assert two.steps[1].rl.stages[0].name == "short"
    assert dataclasses.is_dataclass(one.steps[1].rl.stages[0])
