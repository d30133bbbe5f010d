"""`crescendo data` with what it starts: a real executor that grades, a real engine that answers."""

import contextlib
import json
import os
from pathlib import Path

import psutil
import pytest

from crescendo.cli.data_difficulty import Journal
from crescendo.cli.engine_host import folder_manifest
from crescendo.cli.main import main, parser
from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.errors import DataError
from crescendo.common.models import write_scratch_model
from crescendo.reward_service.data import Question, Tally

VOCABULARY = "." + "0123456789abcdefghijklmnopqrstuvwxyz#=?>-+ " + "$"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_scratch_model(folder, ScratchModelConfig(vocabulary=VOCABULARY, max_positions=128), seed=3)
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rules(path: Path) -> list[tuple[int, str]]:
    return [(row["row"], row["rule"]) for row in map(json.loads, path.read_text().splitlines())]


def test_filter_asks_the_real_grader(tmp_path: Path) -> None:
    rows = [
        {"question": "Find x.", "answer": r"\frac{1}{2}"},
        {"question": "Find y.", "answer": "$$"},
        {"question": "Prove that x = 2.", "answer": "2"},
    ]
    source = write(tmp_path / "p.jsonl", rows)
    assert main(["data", "filter", source, "--workers", "1"]) == 0
    kept = [json.loads(line) for line in (tmp_path / "p.filter.jsonl").read_text().splitlines()]
    assert kept == rows[:1]
    assert rules(tmp_path / "p.filter.jsonl.removed.jsonl") == [(2, "ungradable"), (3, "proof")]


def test_difficulty_asks_a_real_engine_for_what_is_not_known_yet(tmp_path: Path, model: Path) -> None:
    rows = [{"question": f"{n}+{n}=?", "answer": "no such answer", "name": f"q{n}"} for n in range(12)]
    rows += [{"question": "A", "answer": "1", "name": "A"}, {"question": "1" * 99, "answer": "1", "name": "long"}]
    source = write(tmp_path / "p.jsonl", rows)
    out = tmp_path / "p.difficulty.jsonl"
    command = [
        *("data", "difficulty", source, "--id", "name", "--model", str(model), "--samples", "2", "--guesses", "1"),
        *("--template", "{question}>", "--guess-template", "{question}>", "--guess-prefix", "", "--max-tokens", "12"),
        *("--guess-tokens", "4", "--max-prompt-tokens", "60", "--kv-cache-gib", "0.1", "--workers", "1"),
        *("--scorer", "exact_match", "--batch", "8"),
    ]
    journal = Journal(out, parser().parse_args(command))
    with contextlib.suppress(KeyboardInterrupt), journal:  # a run that was interrupted after one question
        journal.add(Question("p", 1, "q0", "", ()), Tally(num_samples=2, num_correct=2))
        raise KeyboardInterrupt
    assert journal.path.exists()
    before = set(psutil.Process().children(recursive=True))
    assert main(command) == 0
    assert set(psutil.Process().children(recursive=True)) <= before
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in kept] == [f"q{n}" for n in range(1, 12)]
    assert {(row["pass_rate"], row["num_samples"], row["num_guessed"]) for row in kept} == {(0.0, 2, 0)}
    # A capital letter is not in the vocabulary; ninety-nine characters are too long a prompt.
    removed = rules(tmp_path / "p.difficulty.jsonl.removed.jsonl")
    assert removed == [(1, "too_easy"), (13, "not_tried"), (14, "not_tried")]
    assert not journal.path.exists()


def test_a_model_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.safetensors"):
        folder_manifest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(64))
    with pytest.raises(DataError, match="is no safetensors file"):
        folder_manifest(tmp_path)
