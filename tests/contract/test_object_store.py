"""One suite over both kinds of store: a folder and a bucket."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crescendo.common import object_store
from crescendo.common.errors import CheckpointError, ConfigError, DeadlineError, StoreUnavailableError
from crescendo.common.object_store import ObjectStore, file_digest
from tests.fakes.bucket import Bucket

LARGE = 11 * 2**20  # more than S3's clients send in one piece


@dataclass
class Place:
    """A store with the means to harm what lies in it. bucket: None for a folder."""

    url: str
    keys: str
    root: Path
    bucket: Bucket | None

    def open(self, **options: Any) -> ObjectStore:
        return ObjectStore(self.url, credentials=self.keys, **options)

    def change(self, name: str, content: bytes | None) -> None:
        if self.bucket is not None:
            self.bucket.files.pop(f"runs/math/{name}")
            if content is not None:
                self.bucket.files[f"runs/math/{name}"] = content
        elif content is None:
            (self.root / name).unlink()
        else:
            (self.root / name).write_bytes(content)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    found = Bucket(key_id="AKIATEST")
    yield found
    found.close()


def in_bucket(bucket: Bucket, tmp_path: Path) -> Place:
    keys = tmp_path / "keys"
    keys.mkdir()
    known = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hushed", "AWS_ENDPOINT_URL": bucket.url}
    for name, value in known.items():
        (keys / name).write_text(f"{value}\n")
    return Place("s3://runs/math", str(keys), tmp_path, bucket)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Place:
    if request.param == "folder":
        return Place(f"file://{tmp_path}/store", "", tmp_path / "store", None)
    return in_bucket(bucket, tmp_path)


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "here"
    path.write_bytes(content)
    return path


@given(content=st.binary(max_size=64), ranges=st.integers(1, 16))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_put_is_got_in_ranges_of_any_size(place: Place, tmp_path: Path, content: bytes, ranges: int) -> None:
    source, target = file_of(tmp_path, content), tmp_path / "there"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_store, "RANGE_BYTES", ranges)
        digest = place.open().put(source, "checkpoints/c/part")
        assert digest == file_digest(source)
        place.open().get("checkpoints/c/part", target, len(content), digest)
    assert target.read_bytes() == content


def test_a_file_of_many_parts(place: Place, tmp_path: Path) -> None:
    source = file_of(tmp_path, os.urandom(LARGE))
    beats: list[int] = []
    store = place.open(beat=lambda: beats.append(1))
    digest = store.put(source, "large")
    assert store.size("large") == LARGE
    assert place.open(threads=False).put(source, "again") == digest
    store.get("large", tmp_path / "deep" / "there", LARGE, digest)
    assert (tmp_path / "deep" / "there").read_bytes() == source.read_bytes()
    assert len(beats) >= LARGE // object_store.CHUNK_BYTES


def test_small_objects_names_and_removal(place: Place) -> None:
    store = place.open()
    assert store.names("commits") == []
    assert store.read("commits/a.json") is None
    for name in ("commits/b.json", "commits/a.json", "checkpoints/c1/part0", "checkpoints/c2/part0"):
        store.write(name, b"{}")
    store.write("commits/a.json", b"[]")
    assert store.read("commits/a.json") == b"[]"
    assert store.names("commits") == ["a.json", "b.json"]
    assert store.names("checkpoints") == ["c1", "c2"]
    store.remove("checkpoints/c1")
    store.remove("commits/b.json")
    store.remove("never/there")
    assert (store.names("checkpoints"), store.names("commits")) == (["c2"], ["a.json"])


@pytest.mark.parametrize(
    ("content", "says"), [(None, "is missing"), (b"shor", "has 4 bytes"), (b"wrong", "has digest")]
)
def test_what_is_not_what_it_should_be_never_becomes_a_file(
    place: Place, tmp_path: Path, content: bytes | None, says: str
) -> None:
    digest = place.open().put(file_of(tmp_path, b"right"), "part")
    place.change("part", content)
    target = tmp_path / "copies" / "there"
    with pytest.raises(CheckpointError, match=says):
        place.open().get("part", target, 5, digest)
    assert list(target.parent.iterdir()) == []


def test_a_transfer_has_a_deadline(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="not transferred within 0 s") as told:
        place.open(limit_s=0).put(file_of(tmp_path, b"x"), "part")
    assert told.value.field == "deadlines.checkpoint_s"


@pytest.mark.parametrize(("status", "says"), [(403, "is refused"), (404, "no such bucket")])
def test_what_asking_again_does_not_change_is_a_wrong_configuration(
    bucket: Bucket, tmp_path: Path, status: int, says: str
) -> None:
    bucket.refuse_writes = status
    with pytest.raises(ConfigError, match=says) as told:
        in_bucket(bucket, tmp_path).open().write("run.json", b"{}")
    assert told.value.field == "checkpoint_store.url"
    assert "hushed" not in str(told.value)


def test_a_strangers_key_opens_nothing_and_is_told_where_to_change_it(bucket: Bucket, tmp_path: Path) -> None:
    place = in_bucket(bucket, tmp_path)
    Path(place.keys, "AWS_ACCESS_KEY_ID").write_text("AKIASTRANGER")
    source, store = file_of(tmp_path, bytes(LARGE)), place.open()
    for attempt in (lambda: store.write("run.json", b"{}"), lambda: store.put(source, "part"), lambda: store.names("")):
        with pytest.raises(ConfigError, match="is refused") as told:
            attempt()
        assert "spec.storage.checkpoints.secretRef" in told.value.fix
    assert bucket.files == {}


def test_a_store_that_hangs_or_is_away_is_told_in_time(bucket: Bucket, tmp_path: Path) -> None:
    store = in_bucket(bucket, tmp_path).open(connect_s=0.5, answer_s=0.5, attempts=2)
    bucket.go.clear()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError) as told:
        store.write("run.json", b"{}")
    assert told.value.retryable
    bucket.close()
    with pytest.raises(StoreUnavailableError):
        store.write("run.json", b"{}")
    assert time.monotonic() - begun < 20


def test_keys_that_are_not_there_are_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="AWS_") as told:
            ObjectStore("s3://runs/math", credentials=str(folder))
        assert told.value.field == "checkpoint_store.credentials"
    with pytest.raises(ConfigError, match="cannot be opened"):
        ObjectStore("nothing://runs/math")
