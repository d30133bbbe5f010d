"""The GSM8K recipe on its real model: SmolLM2-135M, its tokenizer and chat template, math-verify; a few iterations.

The questions are shipped here, in the data set's form, because tests reach no hub; `make model-smollm2` makes the
model.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "gsm8k-smollm2" / "recipe.yaml"
MODEL = ROOT / "models" / "smollm2-135m-instruct"
DEADLINE_S = 800.0
QUESTIONS = [
    ("Ann has 3 {thing}s and buys 4 more. How many {thing}s has she?", 7),
    ("A box holds 6 {thing}s. How many {thing}s are in 3 boxes?", 18),
    ("Tom had 9 {thing}s and lost 5. How many {thing}s are left?", 4),
    ("Sue makes 2 {thing}s a day. How many {thing}s does she make in 5 days?", 10),
    ("12 {thing}s are shared by 4 friends. How many {thing}s does each get?", 3),
    ("A red {thing} costs 2 dollars and a blue {thing} 7 dollars. What do both cost together?", 9),
]
SMALL = (
    "data.max_prompt_tokens=128",
    "steps.0.rl.validation.num_prompts=2",
    *(f"steps.0.rl.stages.{n}.max_response_tokens={80 + 8 * n}" for n in range(3)),
    *(f"steps.0.rl.stages.{n}.token_budget=0" for n in range(3)),
    *(f"steps.0.rl.stages.{n}.prompts_per_iteration=2" for n in range(3)),
    *(f"steps.0.rl.stages.{n}.samples_per_prompt=4" for n in range(3)),
    *(f"steps.0.rl.stages.{n}.max_iterations=1" for n in range(3)),
)


def write_questions(path: Path, thing: str) -> None:
    """JSONL as GSM8K has it, about things of a name; the last row is broken and must be set aside."""
    rows = [
        {"question": question.format(thing=thing), "answer": f"Work it out. #### {answer}"}
        for question, answer in QUESTIONS
    ]
    lines = [json.dumps(row) for row in rows] + [json.dumps({"question": "No answer?", "answer": ""})]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    if not (MODEL / "config.json").exists():
        reason = f"{MODEL} is not there: make model-smollm2"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    scratch = tmp_path_factory.mktemp("gsm8k")
    (scratch / "runs").mkdir()
    sources = []
    for part, thing in (("train", "thing"), ("validation", "piece")):
        write_questions(scratch / f"{part}.jsonl", thing)
        sources += [f"data.{part}.name=jsonl", f"data.{part}.path={scratch / part}.jsonl", f"data.{part}.num_prompts=0"]
    settings = [f"model.source={MODEL}", "data.max_bad_rows=0.5", *sources, *SMALL]
    overrides = [part for setting in settings for part in ("--set", setting)]
    process = RunProcess(scratch / "runs" / "gsm8k-smollm2", ["run", str(RECIPE), *overrides])
    assert process.wait(DEADLINE_S) == 0, process.text
    return process


def test_every_step_was_finite_and_engine_and_trainer_agreed(run: RunProcess) -> None:
    rows = [row for row in run.rows("metrics.jsonl") if "train_loss" in row]
    assert rows
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["train_grad_norm"]) for row in rows)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert 0.0 < summary["checks"]["logprob_max_diff"] <= 1e-3
    assert summary["weight_version"] > 1


def test_broken_rows_were_set_aside_with_their_reason(run: RunProcess) -> None:
    reasons = [row["reason"] for row in run.rows("quarantine.jsonl")]
    assert any("answer" in reason for reason in reasons)


def test_answers_were_graded_as_mathematics(run: RunProcess) -> None:
    samples = run.rows("samples.jsonl")
    assert {component["name"] for sample in samples for component in sample["components"]} >= {"math_answer", "format"}


def test_the_exported_checkpoint_speaks(run: RunProcess) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "export")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
