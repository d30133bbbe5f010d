"""Each source gives its rows in order, survives broken ones, and says clearly when it cannot be read."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from crescendo.common.config.schema import DataSourceConfig
from crescendo.common.errors import ConfigError, DataError
from crescendo.controller.data import open_source
from crescendo.controller.data.hub import HubSource
from crescendo.controller.data.rows import Row

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]


def read(name: str, path: Path | str, columns: Sequence[str] = ()) -> list[Row]:
    return list(open_source(DataSourceConfig(name=name, path=str(path)), columns).rows())


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_jsonl_rows_keep_line_numbers_and_broken_lines_have_problems(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\n\n{broken\n[1]\n" + b'{"question": "\xff"}\n'
        b'"text"\n' + b"[" * 50_000 + b"\n" + json.dumps(ROWS[1]).encode()
    )
    rows = read("jsonl", path)
    assert [(row.number, bool(row.problem)) for row in rows] == [
        (1, False), (3, True), (4, True), (5, True), (6, True), (7, True), (8, False),
    ]  # fmt: skip
    assert [rows[0].values, rows[-1].values] == ROWS[:2]
    problems = [row.problem for row in rows if row.problem]
    assert "not JSON" in problems[0]
    assert problems[1:4] == [
        "row is a JSON list, not an object",
        "line is not UTF-8",
        "row is a JSON str, not an object",
    ]


def test_a_line_too_long_to_hold_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crescendo.controller.data.jsonl._MAX_LINE_BYTES", 64)
    path = write_jsonl(tmp_path / "data.jsonl", [ROWS[0], {"question": "x" * 1000}, ROWS[1]])
    rows = read("jsonl", path)
    assert [row.number for row in rows] == [1, 2, 3]
    assert "longer than 64 bytes" in rows[1].problem
    assert rows[2].values == ROWS[1]


def test_json_arrays_globs_folders_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(" \n" + json.dumps(ROWS, indent=1))
    assert [row.values for row in read("jsonl", tmp_path / "array.json")] == ROWS
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    assert [row.values for row in read("jsonl", tmp_path / "packed.jsonl.gz")] == ROWS
    write_jsonl(tmp_path / "parts" / "b.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "parts" / "a.jsonl", ROWS[:3])
    for path in (tmp_path / "parts", tmp_path / "parts" / "*.jsonl"):
        rows = read("jsonl", path)
        assert [row.values for row in rows] == ROWS
        assert [row.number for row in rows] == [1, 2, 3, 1, 2]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert read("jsonl", tmp_path / "empty.jsonl") == []


def test_parquet_reads_only_the_columns_asked_for(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", [row | {"huge": "x" * 100} for row in ROWS])
    rows = read("parquet", path, ("question", "answer"))
    assert [row.values for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert "huge" in read("parquet", path)[0].values


def test_parquet_text_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    strings = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"question": strings}), tmp_path / "data.parquet")
    rows = read("parquet", tmp_path / "data.parquet")
    assert [row.values.get("question") for row in rows] == ["good", None, "fine"]
    assert "not UTF-8" in rows[1].problem
    assert rows[1].number == 2


def test_parquet_without_a_needed_column_names_those_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", [{"problem": "q", "solution": "a"}])
    with pytest.raises(DataError, match=r"no column 'question'; it has: problem, solution"):
        read("parquet", path, ("question",))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_that_are_missing_or_damaged(tmp_path: Path, kind: str) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "*.none", "nosuchprotocol://x/y"):
        with pytest.raises(DataError) as caught:
            read(kind, path)
        assert caught.value.fix
    damaged = tmp_path / ("data.jsonl.gz" if kind == "jsonl" else "data.parquet")
    damaged.write_bytes(gzip.compress(b'{"question": "q"}\n' * 1000)[:60] if kind == "jsonl" else b"no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read(kind, damaged)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ConfigError, match="csv"):
        open_source(DataSourceConfig(name="csv"))


# The hub, through a local folder with the hub's layout in place of its file system.


def hub(root: Path, name: str = "owner/set", subset: str = "", split: str = "train") -> HubSource:
    return HubSource(name, subset, split, filesystem=fsspec.filesystem("dir", path=str(root)))


def test_the_hub_split_is_read_from_the_data_sets_own_files(tmp_path: Path) -> None:
    base = tmp_path / "datasets/owner/set"
    write_parquet(base / "main/train-00000-of-00002.parquet", ROWS[:3])
    write_parquet(base / "main/train-00001-of-00002.parquet", ROWS[3:])
    write_parquet(base / "main/test-00000-of-00001.parquet", ROWS[:1])
    write_parquet(base / "other/train-00000-of-00001.parquet", ROWS[:2])
    assert [row.values for row in hub(tmp_path, subset="main").rows()] == ROWS
    assert [row.values for row in hub(tmp_path, subset="main", split="test").rows()] == ROWS[:1]
    with pytest.raises(DataError, match="several subsets: main, other"):
        list(hub(tmp_path).rows())
    with pytest.raises(DataError, match="'validation'"):
        list(hub(tmp_path, subset="main", split="validation").rows())


def test_the_converted_branch_stands_in_for_other_formats(tmp_path: Path) -> None:
    write_parquet(tmp_path / "datasets/owner/set@refs%2Fconvert%2Fparquet/default/train/0000.parquet", ROWS)
    (tmp_path / "datasets/owner/set").mkdir(parents=True)
    assert [row.values for row in hub(tmp_path).rows()] == ROWS


def test_a_revision_can_be_pinned(tmp_path: Path) -> None:
    write_parquet(tmp_path / "datasets/owner/set/data/train-0.parquet", ROWS)
    write_parquet(tmp_path / "datasets/owner/set@v1/data/train-0.parquet", ROWS[:2])
    assert len(list(hub(tmp_path, "owner/set@v1").rows())) == 2
    assert len(list(hub(tmp_path).rows())) == 5


def test_without_network_the_error_says_how_to_use_a_copy() -> None:
    class Offline:
        def glob(self, pattern: str) -> list[str]:
            raise ConnectionResetError("Name or service not known")

    with pytest.raises(DataError) as caught:
        list(HubSource("openai/gsm8k", "main", "train", filesystem=Offline()).rows())
    assert "openai/gsm8k" in str(caught.value)
    assert "data.train.path=FILE" in caught.value.fix
