"""What a worker on a machine of its own is given: whole, once, and nothing that was tampered with."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crescendo.common.errors import CheckpointError
from crescendo.common.object_store import ObjectStore, file_digest
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.controller.store import bring_export, with_inputs
from crescendo.controller.store.inputs import carry_inputs

MODEL = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights" * 100}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/store")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "head", "math")
    made.config.write_text("run: {}")
    lies = tmp_path / "models" / "qwen"
    lies.mkdir(parents=True)
    for name, content in {**MODEL, "pytorch_model.bin": b"not for us"}.items():
        (lies / name).write_bytes(content)
    made.model.symlink_to(lies)
    return made


def worker(tmp_path: Path, store: ObjectStore) -> ServiceSpec:
    return ServiceSpec(
        "trainer", "trainer-0", str(tmp_path / "worker"), "math-1", "", model_path=str(tmp_path / "of-the-head"),
        store=store.url,
    )  # fmt: skip


def test_the_workers_of_a_machine_get_configuration_and_model_once(
    tmp_path: Path, store: ObjectStore, folder: RunFolder
) -> None:
    carry_inputs(store, folder)
    with ThreadPoolExecutor(4) as pool:
        specs = list(pool.map(with_inputs, [worker(tmp_path, store)] * 4))
    (path,) = {spec.model_path for spec in specs}
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == MODEL
    assert (tmp_path / "worker" / "config.yaml").read_text() == "run: {}"


def test_a_fetch_that_was_cut_off_goes_on(tmp_path: Path, store: ObjectStore, folder: RunFolder) -> None:
    carry_inputs(store, folder)
    half = tmp_path / "worker" / "model.incoming"
    half.mkdir(parents=True)
    (half / "config.json").write_bytes(b"{")
    path = Path(with_inputs(worker(tmp_path, store)).model_path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == MODEL


def test_a_machine_that_shares_the_run_folder_fetches_nothing(tmp_path: Path, folder: RunFolder) -> None:
    spec = ServiceSpec(
        "trainer", "trainer-0", str(folder.root), "math-1", "", model_path=str(folder.model), store="file:///nowhere"
    )
    assert with_inputs(spec) is spec


def test_the_model_is_carried_once_and_the_configuration_always(
    tmp_path: Path, store: ObjectStore, folder: RunFolder
) -> None:
    carry_inputs(store, folder)
    stored = tmp_path / "store" / "inputs" / "model" / "model.safetensors"
    before = stored.stat().st_mtime_ns
    folder.config.write_text("run: {seed: 2}")
    carry_inputs(store, folder)
    assert stored.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "store" / "inputs.json").read_text())["config"] == "run: {seed: 2}"


def test_a_name_that_leads_elsewhere_and_a_store_without_inputs_are_refused(
    tmp_path: Path, store: ObjectStore, folder: RunFolder
) -> None:
    with pytest.raises(CheckpointError, match=r"has no inputs\.json") as told:
        with_inputs(worker(tmp_path, store))
    assert told.value.field == "checkpoint_store.carries_inputs"
    store.write("inputs.json", json.dumps({"config": "run: {}", "model": [["../../x", 1, 1]]}).encode())
    with pytest.raises(CheckpointError, match="lies outside"):
        with_inputs(worker(tmp_path, store))


def test_the_export_comes_into_the_run_folder(tmp_path: Path, store: ObjectStore, folder: RunFolder) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"policy")
    digest = store.put(made, "export/model.safetensors")
    for _ in range(2):
        bring_export(store, folder, [("model.safetensors", 6, digest)])
    assert file_digest(folder.export / "model.safetensors") == digest
