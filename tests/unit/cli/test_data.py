"""`crescendo data` without services: files in, files and reports out, errors that name file, row and field."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from crescendo.cli.data_difficulty import judged
from crescendo.cli.data_files import Entry
from crescendo.cli.main import main
from crescendo.controller.data import Row
from crescendo.reward_service.data import Question, Tally

ROWS: list[dict[str, Any]] = [
    {"problem": "What is 1 + 1?", "answer": "2", "level": 1},
    {"problem": "", "answer": "2"},
    {"problem": "What is 2 + 2?", "answer": None},
    {"problem": "What is 1 + 1?", "answer": "2"},
    {"problem": "Is 7 prime?", "answer": "Yes"},
    {"problem": "What is \ud834 + 1?", "answer": "2"},
]


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_check_sets_bad_rows_aside_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "p.jsonl", [*ROWS, "{broken", "[1]"]), tmp_path / "good.jsonl"
    assert main(["data", "check", source, "--out", str(out)]) == 2
    assert [row["problem"] for row in read(out)] == ["What is 1 + 1?", "Is 7 prime?"]
    assert read(out)[0] == ROWS[0]
    removed = read(tmp_path / "good.jsonl.removed.jsonl")
    assert [(row["row"], row["rule"]) for row in removed] == [
        (2, "bad_row"), (3, "bad_row"), (4, "duplicate_id"), (6, "bad_row"), (7, "bad_row"), (8, "bad_row"),
    ]  # fmt: skip
    assert removed[1]["reason"] == "answer is missing (column 'answer')"
    report = json.loads((tmp_path / "good.jsonl.report.json").read_text())
    assert (report["num_rows"], report["num_kept"], report["num_removed"]) == (8, 2, 6)
    shown = capsys.readouterr().out
    assert "8 rows, 2 kept, 6 removed" in shown
    assert "row 2: question is empty" in shown


def test_check_of_a_good_file_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [ROWS[0], ROWS[4]])
    assert main(["data", "check", source]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_dedupe_against_a_test_set_with_other_columns(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [{"question": "How many legs do three cats and two dogs have together?"}])
    rows = [
        {"problem": "Tell me: how many legs do three cats and two dogs have?", "answer": "20"},
        {"problem": "A farmer has 12 cows and 3 goats. How many animals are on the farm in all?", "answer": "15"},
        {"problem": "A farmer has 12 cows and 3 goats. How many animals are on the farm in all??", "answer": "15"},
        {"problem": "What is 9 - 4?", "answer": "5"},
    ]
    source = write(tmp_path / "train.jsonl", rows)
    assert main(["data", "dedupe", source, "--against", test]) == 0
    assert read(tmp_path / "train.dedupe.jsonl") == [rows[1], rows[3]]
    rules = [row["rule"] for row in read(tmp_path / "train.dedupe.jsonl.removed.jsonl")]
    assert rules == ["test_overlap", "near_duplicate"]


def test_filter_keeps_parquet_and_its_types(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    rows = [{"question": "Is 7 prime?", "answer": "yes", "n": 1}, {"question": "Find 1 + 1.", "answer": "2", "n": 2}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    assert main(["data", "filter", str(source), "--keep", "ungradable"]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "p.filter.parquet").to_pylist() == [rows[1]]
    assert main(["data", "filter", str(source), "--keep", "ungradable", "--keep", "true_false", "--force"]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "p.filter.parquet").num_rows == 2


def test_filter_with_deepscalers_rule_on_a_json_array(tmp_path: Path) -> None:
    source = tmp_path / "p.json"
    rows = [{"problem": "Expand.", "answer": "x^{2}+y"}, {"problem": "Add.", "answer": "#### 7"}]
    source.write_text(json.dumps(rows))
    arguments = ["data", "filter", str(source), "--keep", "ungradable"]
    assert main([*arguments, "--strict-answers"]) == 0  # ungradable is not applied, whoever finds it
    assert len(read(tmp_path / "p.filter.jsonl")) == 2


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["check", "{tmp}/none.jsonl"], "none.jsonl does not exist"),
        (["check", "{tmp}/empty.jsonl"], "no readable row"),
        (["check", "{tmp}/p.jsonl", "--question", "q"], "no column 'q' for the question; it has: problem, answer"),
        (["check", "{tmp}/p.jsonl", "--answer-after", "####"], "no row of"),
        (["dedupe", "{tmp}/p.jsonl", "--out", "{tmp}/p.jsonl"], "p.jsonl exists"),
        (["dedupe", "{tmp}/p.jsonl", "--out", "{tmp}/no/where.jsonl"], "is not a folder"),
        (["dedupe", "{tmp}/p.jsonl", "--threshold", "0"], "threshold is 0.0"),
        (["dedupe", "{tmp}/p.jsonl", "--against", "{tmp}/none.jsonl"], "none.jsonl does not exist"),
        (["difficulty", "{tmp}/p.jsonl", "--model", "{tmp}"], "has no tokenizer.json"),
        (["difficulty", "{tmp}/p.jsonl", "--model", "{tmp}", "--template", "x"], "does not hold {question}"),
        (["difficulty", "{tmp}/p.jsonl", "--model", "{tmp}", "--samples", "0", "--guesses", "0"], "both 0"),
    ],
)
def test_errors_name_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], shown: str
) -> None:
    write(tmp_path / "p.jsonl", [ROWS[0]])
    write(tmp_path / "empty.jsonl", [])
    assert main(["data", *(text.replace("{tmp}", str(tmp_path)) for text in arguments)]) == 2
    assert shown in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize(
    "arguments", [["chek", "f"], ["check"], ["dedupe", "f", "--ngram", "0"], ["filter", "f", "--keep", "x"]]
)
def test_wrong_arguments_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert ended.value.code == 2


def test_a_hostile_file_is_read_through(tmp_path: Path) -> None:
    rows = [{"question": "(A) " * 250_000, "answer": "1"}, {"question": "[" * 1_000_000, "answer": "1"}, ROWS[0]]
    nested = '{"question": ' + "[" * 200_000 + "]" * 200_000 + "}"
    source = write(tmp_path / "p.jsonl", [{"question": "Find 1 + 1.", "answer": "2"}, *rows[:2], nested, "\0\xff"])
    assert main(["data", "check", source, "--out", str(tmp_path / "o.jsonl")]) == 2
    assert [row["answer"] for row in read(tmp_path / "o.jsonl")] == ["2"]


@pytest.mark.parametrize(
    ("tally", "expected"),
    [
        (Tally(num_samples=10, num_correct=5, num_guesses=8), ""),
        (Tally(num_samples=10, num_correct=10), "too_easy"),
        (Tally(num_samples=10, num_correct=0), "too_hard"),
        (Tally(num_samples=10, num_correct=5, num_guesses=8, num_guessed=1), "guessable"),
        (Tally(problem="prompt has 9 tokens"), "not_tried"),
        (Tally(num_faults=10), "not_graded"),
    ],
)
def test_what_goes_after_measuring(tally: Tally, expected: str) -> None:
    entry = Entry(Row("f", 1), Question("f", 1, "a", "a", ("1",)))
    found = judged(entry, tally, 0.1, 0.95)
    assert (found.rule if found else "") == expected
