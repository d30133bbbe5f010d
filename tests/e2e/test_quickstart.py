"""The quick start, whole, as `make demo` runs it: a model that learned, stage by stage, each left by its rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "recipe.yaml"
POINTS = 0.30  # of validation accuracy, from after SFT to the end
DEADLINE_S = 1100.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    scratch = tmp_path_factory.mktemp("demo")
    (scratch / "runs").mkdir()
    process = RunProcess(scratch / "runs" / "quickstart", ["run", str(RECIPE)])
    assert process.wait(DEADLINE_S) == 0, process.text
    return process


@pytest.fixture(scope="module")
def summary(run: RunProcess) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder / "summary.json").read_text())
    return loaded


def test_it_learned(summary: dict[str, Any]) -> None:
    assert summary["accuracy"]["final"] >= summary["accuracy"]["sft"] + POINTS


def test_each_stage_was_left_by_its_gate(summary: dict[str, Any]) -> None:
    assert [stage["left_by"] for stage in summary["stages"]] == ["length_turn", "plateau", "plateau"]


def test_engine_and_trainer_agreed_at_every_sync(summary: dict[str, Any]) -> None:
    assert 0.0 < summary["checks"]["logprob_max_diff"] <= 1e-3


def test_partial_rollouts_and_the_length_reward_took_part(run: RunProcess) -> None:
    rows = [row for row in run.rows("metrics.jsonl") if "iteration_seconds" in row]
    assert sum(row["continued"] for row in rows) > 0
    last_stage = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    assert any(row["reward"] != row["accuracy"] for row in last_stage)


def test_the_checkpoint_answers_in_transformers(run: RunProcess) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "export")
    prompt = tokenizer("3a1b2c3?", return_tensors="pt", return_token_type_ids=False)
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0])
    assert answer.startswith("3a1b2c3?a1=4b2=6c3=9#9")


def test_it_ends_with_a_table_a_plot_and_what_to_do_next(run: RunProcess) -> None:
    assert "context-96" in run.text
    assert "crescendo console" in run.text
    assert (run.folder / "plots" / "run.png").stat().st_size > 10_000


def test_nothing_is_left_behind(run: RunProcess) -> None:
    assert run.left_behind() == []
    assert run.shared_memory() == []
