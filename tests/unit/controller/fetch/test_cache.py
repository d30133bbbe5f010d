"""The cache that `crescendo fetch` fills, from folders of this machine."""

import json
from pathlib import Path

import pytest

from crescendo.common.errors import ConfigError, CrescendoError, DeadlineError, DiskFullError
from crescendo.controller.fetch import Kind, cache, fetch, parse
from crescendo.controller.fetch.remote import SourceUnavailable, explained


def model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "optimizer.bin"):
        (folder / name).write_text(name)
    return folder


def bring(folder: Path, target: Path, kind: Kind = Kind.MODEL, deadline_s: float = 30.0) -> tuple[Path, list[str]]:
    said: list[str] = []
    source = parse(f"file://{folder}", kind)
    return fetch(source, target, kind, field="spec.model", deadline_s=deadline_s, say=said.append), said


def test_a_folder_is_copied_once_with_its_marker(tmp_path: Path) -> None:
    source = model(tmp_path / "source")
    files, _ = bring(source, tmp_path / "cache/model")
    assert sorted(path.name for path in files.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    marker = json.loads((tmp_path / "cache/model/fetched.json").read_text())
    assert marker["uri"] == f"file://{source}"
    assert set(marker["files"]["config.json"]) == {"bytes", "sha256"}
    (source / "config.json").write_text("changed")
    again, said = bring(source, tmp_path / "cache/model")
    assert "is in the cache" in said[0]
    assert (again / "config.json").read_text() == "config.json"


def test_a_damaged_cache_and_one_of_another_source_are_replaced(tmp_path: Path) -> None:
    source = model(tmp_path / "source")
    files, _ = bring(source, tmp_path / "model")
    (files / "model.safetensors").write_text("short")
    bring(source, tmp_path / "model")
    assert (files / "model.safetensors").read_text() == "model.safetensors"
    (tmp_path / "model/fetched.json").write_text("[")
    bring(source, tmp_path / "model")
    other = model(tmp_path / "other")
    (other / "config.json").write_text("other")
    bring(other, tmp_path / "model")
    assert (files / "config.json").read_text() == "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other", "source"]


def test_one_file_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    files, _ = bring(tmp_path / "a.jsonl", tmp_path / "train", Kind.DATASET)
    assert [path.name for path in files.iterdir()] == ["a.jsonl"]


def test_a_folder_without_what_a_model_needs(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"spec\.model .* lacks tokenizer\.json"):
        bring(tmp_path / "source", tmp_path / "model")
    with pytest.raises(ConfigError, match="nothing there"):
        bring(tmp_path / "nowhere", tmp_path / "model")


def test_its_deadline_and_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(tmp_path / "source")
    with pytest.raises(DeadlineError, match=r"spec\.model was not fetched within"):
        bring(source, tmp_path / "model", deadline_s=-1.0)
    assert not (tmp_path / "model").exists()

    class Full:
        free = 3

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(DiskFullError, match="has 3 B free"):
        bring(model(tmp_path / "second"), tmp_path / "other")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(28, "No space left"), DiskFullError, "full"),
        (OSError("When getting information: AWS Error ACCESS_DENIED during HeadObject"), ConfigError, "secretRef"),
        (FileNotFoundError("s3://bucket/x"), ConfigError, "nothing there"),
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 7"), SourceUnavailable, "tried again"),
    ],
)
def test_what_goes_wrong_is_told_by_kind(error: Exception, kind: type[CrescendoError], says: str) -> None:
    with pytest.raises(kind) as caught, explained(parse("s3://bucket/x", Kind.MODEL), "spec.model"):
        raise error
    assert says in str(caught.value)
    assert caught.value.field == "spec.model"
