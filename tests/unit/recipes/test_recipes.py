"""Recipes at their real size: run file, RLJob and tiny twin say the same, and the twins run."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from crescendo.common.config import Config, check_mapping, load_config, read_mapping, save_resolved
from crescendo.common.config.rl import RlStepConfig
from crescendo.common.runfolder import RunFolder
from crescendo.controller.operator.children import fixtures, ray_job, spec_problems
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.render import to_rljob
from crescendo.controller.operator.resource import Job, parse_time
from tests.integration.light_run import LightRun

RECIPES = Path(__file__).parents[3] / "recipes"
LARGE = ("deepscaler", "k15-8k-16k-24k")
OPTIONS = Options(reward_address="crescendo-reward.crescendo-system.svc:8446")
CONTEXTS = {"context-8k": (8192, 8), "context-16k": (16384, 16), "context-24k": (24576, 16)}


@pytest.fixture(params=LARGE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rl(config: Config) -> RlStepConfig:
    return config.steps[-1].rl


def recipe(name: str) -> Config:
    return check_mapping(read_mapping(RECIPES / name / "recipe.yaml"), name)


def job(name: str) -> Job:
    body = yaml.safe_load((RECIPES / name / "rljob.yaml").read_text())
    metadata = {**body["metadata"], "namespace": "team", "uid": "uid-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert parse_time(metadata["creationTimestamp"])
    return Job.from_body({**body, "metadata": metadata})


def test_a_run_file_passes_the_check_that_people_run(name: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}\n")
    overrides = [f"data.train.path={prompts}"] if recipe(name).data.train.name == "jsonl" else []
    assert load_config(RECIPES / name / "recipe.yaml", overrides).run.name == name


def test_contexts_samples_and_devices_are_the_published_ones(name: str) -> None:
    stages = {stage.name: (stage.max_response_tokens, stage.samples_per_prompt) for stage in rl(recipe(name)).stages}
    assert stages == CONTEXTS
    assert job(name).devices == recipe(name).placement.num_devices == 32


def test_deepscaler_has_the_constants_of_its_scripts() -> None:
    step, config = rl(recipe("deepscaler")), recipe("deepscaler")
    assert [stage.layout.devices for stage in step.stages] == [8, 32, 32]
    assert {stage.prompts_per_iteration for stage in step.stages} == {128}
    assert {stage.sampling.temperature for stage in step.stages} == {0.6}
    assert (step.algorithm.name, step.algorithm.num_mini_batches, step.learning_rate.peak) == ("grpo", 2, 1e-6)
    assert (step.algorithm.grpo.clip_low, step.algorithm.grpo.clip_high) == (0.2, 0.2)
    assert (config.data.max_prompt_tokens, config.trainer.max_tokens_per_micro_batch) == (1024, 32768)
    assert (step.stages[0].gate.name, step.stages[0].gate.rollback) == ("length_turn", "length_minimum")


def test_the_rljob_runs_the_recipe(name: str) -> None:
    rendered = to_rljob(read_mapping(RECIPES / name / "recipe.yaml"), image="any")
    found = yaml.safe_load((RECIPES / name / "rljob.yaml").read_text())
    assert found["spec"]["run"] == rendered["spec"]["run"]
    assert found["spec"]["placement"] == rendered["spec"]["placement"]
    assert found["spec"]["storage"]["accessMode"] == rendered["spec"]["storage"]["accessMode"]


def test_the_rljob_is_accepted_and_becomes_pods(name: str) -> None:
    assert spec_problems(job(name), OPTIONS) == ()
    kinds = {manifest["kind"] for manifest in fixtures(job(name), OPTIONS, "uid-of-secret")}
    assert {"ConfigMap", "StatefulSet", "NetworkPolicy"} <= kinds
    (group,) = ray_job(job(name), 1, OPTIONS)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == (rl(recipe(name)).stages[0].layout.devices or 32) // 8
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


def without_sizes(config: Config) -> dict[str, Any]:
    """What a twin shares with its recipe."""
    step = dataclasses.asdict(rl(config))
    for field in ("learning_rate", "validation", "checkpoints"):
        del step[field]
    for field in ("ngram_tokens", "window_tokens", "count"):
        del step["repetition"][field]
    sized = ("max_response_tokens", "token_budget", "prompts_per_iteration", "max_iterations", "layout")
    for stage in step["stages"]:
        stage["has_budget"] = bool(stage["token_budget"])
        stage["gate"] = {field: stage["gate"][field] for field in ("name", "rollback", "min_clip_ratio")}
        for field in sized:
            del stage[field]
    return step


def test_a_twin_differs_in_sizes_only(name: str) -> None:
    twin = check_mapping(read_mapping(RECIPES / name / "twin.yaml"), name)
    assert without_sizes(twin) == without_sizes(recipe(name))
    assert [link.scorer for link in twin.rewards.group] == [link.scorer for link in recipe(name).rewards.group]


def test_a_twin_goes_through_its_stages(name: str, tmp_path: Path) -> None:
    stages = range(len(CONTEXTS))
    overrides = [
        f"run.folder={tmp_path}",
        "rollout.engine=scripted",
        "archive.enabled=false",
        "steps.0.sft.steps=2",
        "steps.0.sft.batch_size=2",
        "data.train.num_prompts=16",
        "data.validation.num_prompts=4",
        "steps.1.rl.validation.num_prompts=2",
        "rewards.group=[]",
        *(f"steps.1.rl.stages.{n}.prompts_per_iteration=4" for n in stages),
        *(f"steps.1.rl.stages.{n}.gate={{name: step, iterations: 2}}" for n in stages),
    ]
    config = load_config(RECIPES / name / "twin.yaml", overrides)
    folder = RunFolder.create(tmp_path / "twin", "twin")
    save_resolved(config, folder.config)
    run = LightRun(folder)
    assert run.live() == 0, run.last_words()
    rows = [row["stage"] for row in run.rows(folder.metrics) if "iteration_seconds" in row]
    assert [stage for stage, _ in itertools.groupby(rows)] == list(CONTEXTS)
    assert min(Counter(rows).values()) >= 2  # more where an iteration parked all that it had begun
