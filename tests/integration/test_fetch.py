"""`crescendo fetch` from an S3 bucket and a hub on loopback, as the fetch step of a pod calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.object_store import ObjectStore

pytestmark = pytest.mark.timeout(120)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": os.urandom(300_000),
    "model-00002-of-00002.safetensors": os.urandom(100_000),
    "README.md": b"not for us",
    "original/consolidated.pth": b"nor this",
}


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    found = ObjectStore()
    yield found
    found.close()


def command(store: ObjectStore, *arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    known = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "AWS_EC2_METADATA_DISABLED": "true"}
    known |= {"AWS_ENDPOINT_URL": store.url, "HF_ENDPOINT": store.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return [sys.executable, "-m", "crescendo.cli.main", "fetch", *arguments], known | environment


def fetch(store: ObjectStore, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line, known = command(store, *arguments, **environment)
    return subprocess.run(line, env=known, capture_output=True, text=True, timeout=60, check=False)


def holds_the_model(folder: Path) -> None:
    wanted = {name: content for name, content in MODEL.items() if name.endswith((".json", ".safetensors"))}
    files = folder / "files"
    found = {str(one.relative_to(files)): one.read_bytes() for one in files.rglob("*") if one.is_file()}
    assert found == wanted
    marker = json.loads((folder / "fetched.json").read_text())
    assert {name: entry["bytes"] for name, entry in marker["files"].items()} == {
        name: len(content) for name, content in wanted.items()
    }


def test_a_model_from_a_bucket(store: ObjectStore, tmp_path: Path) -> None:
    store.key_id = "AKIATEST"
    store.files = {f"models/qwen/{name}": content for name, content in MODEL.items()}
    arguments = ("s3://models/qwen", str(tmp_path / "cache" / "model"), "--field", "spec.model")
    refused = fetch(store, *arguments)
    assert refused.returncode == 2
    assert "spec.model" in refused.stderr
    assert "AWS_ACCESS_KEY_ID" in refused.stderr
    ran = fetch(store, *arguments, AWS_ACCESS_KEY_ID="AKIATEST", AWS_SECRET_ACCESS_KEY="very-secret")
    assert ran.returncode == 0, ran.stderr
    assert "very-secret" not in ran.stdout + ran.stderr
    holds_the_model(tmp_path / "cache/model")
    store.requests.clear()
    assert fetch(store, *arguments).returncode == 0
    assert store.requests == []


def test_a_model_from_the_hub(store: ObjectStore, tmp_path: Path) -> None:
    store.key_id = "hf_token"
    store.files = {f"owner/small/{name}": content for name, content in MODEL.items()}
    arguments = ("hf://owner/small@main", str(tmp_path / "model"), "--field", "spec.model")
    refused = fetch(store, *arguments)
    assert refused.returncode == 2, refused.stderr
    assert "HF_TOKEN" in refused.stderr
    ran = fetch(store, *arguments, HF_TOKEN="hf_token")
    assert ran.returncode == 0, ran.stderr
    holds_the_model(tmp_path / "model")


def test_a_data_set_from_the_hub(store: ObjectStore, tmp_path: Path) -> None:
    store.files = {"owner/sums/main/train.jsonl": b'{"question": "1+1"}\n', "owner/sums/other/train.jsonl": b"{}\n"}
    ran = fetch(store, "hf://owner/sums/main/train.jsonl", str(tmp_path / "train"), "--kind", "dataset")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "train/files/train.jsonl").read_bytes() == b'{"question": "1+1"}\n'
    assert len(list((tmp_path / "train/files").iterdir())) == 1


@pytest.mark.parametrize("uri", ["s3://models/nowhere", "hf://owner/nobody"])
def test_what_is_not_there_is_told_and_final(store: ObjectStore, tmp_path: Path, uri: str) -> None:
    ran = fetch(store, uri, str(tmp_path / "model"), "--field", "spec.model")
    assert ran.returncode == 2, ran.stderr
    assert "spec.model" in ran.stderr
    assert "nothing there" in ran.stderr


def test_a_source_that_fails_or_stops_short_is_tried_again(store: ObjectStore, tmp_path: Path) -> None:
    store.files = {f"models/qwen/{name}": content for name, content in MODEL.items()}
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    arguments = ("s3://models/qwen", str(tmp_path / "model"))
    store.fail = [503] * 100
    ran = fetch(store, *arguments, **keys)
    assert ran.returncode == 75, ran.stderr
    assert not (tmp_path / "model").exists()
    store.fail = []
    assert fetch(store, *arguments, **keys).returncode == 0
    holds_the_model(tmp_path / "model")


def test_killed_in_the_middle_it_goes_on_with_what_it_has(store: ObjectStore, tmp_path: Path) -> None:
    big = {f"w/part-{number}.parquet": os.urandom(8 * 2**20) for number in range(12)}
    store.files = {f"data/{name}": content for name, content in big.items()}
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    arguments = ("s3://data/w", str(tmp_path / "train"), "--kind", "dataset")
    line, known = command(store, *arguments, **keys)
    child = subprocess.Popen(line, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("train.partial-*/files/part-*.parquet")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "train").exists()
    there = {path.name for path in tmp_path.glob("train.partial-*/files/part-*.parquet")}
    store.requests.clear()
    ran = fetch(store, *arguments, **keys)
    assert ran.returncode == 0, ran.stderr
    assert not any(f"GET /data/w/{name}" in request for request in store.requests for name in there)
    assert {path.name: path.read_bytes() for path in (tmp_path / "train/files").iterdir()} == {
        name.removeprefix("w/"): content for name, content in big.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
