"""Two ranks on machines of their own, with nothing in common but a bucket: killed, and resumed to the same bits."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from crescendo.common.errors import CheckpointError, CrescendoError, StoreUnavailableError
from crescendo.proto.v1 import trainer_pb2
from tests.fakes.bucket import Bucket
from tests.integration.trainer_rig import Rig, running, sft_request
from tests.unit.trainer.tiny_models import write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning"),
]
RUN = "runs/math/checkpoints"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    found = Bucket(key_id="AKIATEST")
    yield found
    found.close()


def store_of(bucket: Bucket, folder: Path) -> dict[str, str]:
    """The spec's fields; the keys as a Secret is mounted."""
    folder.mkdir()
    keys = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": bucket.url}
    for name, value in keys.items():
        (folder / name).write_text(value)
    return {"store": "s3://runs/math", "store_credentials": str(folder)}


async def save(rig: Rig, name: str) -> list[trainer_pb2.CheckpointFile]:
    """The path is the controller's, and means nothing on the ranks' machines."""
    request = trainer_pb2.SaveCheckpointRequest(path=f"/of/the/controller/checkpoints/{name}")
    return list((await rig.call("SaveCheckpoint", request)).files)


async def load(rig: Rig, name: str, files: list[trainer_pb2.CheckpointFile]) -> None:
    path = f"/of/the/controller/checkpoints/{name}"
    await rig.call("LoadCheckpoint", trainer_pb2.LoadCheckpointRequest(path=path, files=files, weight_version=2))


async def go_on(rig: Rig, target: Path) -> None:
    """Trains on from where it stands, and exports the policy."""
    await rig.sft(sft_request(8, version=3))
    await rig.call("ExportModel", trainer_pb2.ExportModelRequest(path=str(target), dtype="float32"))


async def test_what_was_saved_on_two_machines_resumes_on_two_others(bucket: Bucket, tmp_path: Path) -> None:
    model, store = tmp_path / "model", store_of(bucket, tmp_path / "keys")
    write_model(model, "qwen3")
    (tmp_path / "shared").mkdir()
    async with running(tmp_path / "shared", model, tensor_parallel=2) as rig:
        await rig.sft(sft_request(8, version=2))
        path = str(tmp_path / "shared" / "c")
        saved = await rig.call("SaveCheckpoint", trainer_pb2.SaveCheckpointRequest(path=path))
        await rig.call("LoadModel", trainer_pb2.LoadModelRequest(weight_version=9))
        await rig.call(
            "LoadCheckpoint", trainer_pb2.LoadCheckpointRequest(path=path, files=saved.files, weight_version=2)
        )
        await go_on(rig, tmp_path / "shared" / "export")
    expected = (tmp_path / "shared" / "export" / "model.safetensors").read_bytes()

    died = tmp_path / "died"
    (tmp_path / "first").mkdir()
    # Rank 1 uploads one piece a checkpoint here, so the second piece is of the second checkpoint.
    async with running(
        tmp_path / "first", model, store=store, deaths=f"store.uploading:2:{died}", tensor_parallel=2
    ) as rig:
        await rig.sft(sft_request(8, version=2))
        files = await save(rig, "i000001-e1-c1-n1")
        assert [(one.path, one.digest) for one in files] == [(one.path, one.digest) for one in saved.files]
        assert {f"{RUN}/i000001-e1-c1-n1/{one.path}" for one in files} <= set(bucket.files)
        for rank in range(2):  # each machine has its own rank's files and no others
            here = tmp_path / "first" / f"machine{rank}" / "checkpoints" / "i000001-e1-c1-n1"
            assert [path.name for path in here.glob("part*")] == [f"part{rank}.safetensors"]
        with pytest.raises(CrescendoError):
            await save(rig, "i000002-e1-c1-n2")
        assert died.exists()

    (tmp_path / "second").mkdir()
    async with running(tmp_path / "second", model, store=store, tensor_parallel=2) as rig:
        await load(rig, "i000001-e1-c1-n1", files)
        await go_on(rig, tmp_path / "nowhere")
        await load(rig, "i000001-e1-c1-n1", files)  # from the machines' copies
    assert (tmp_path / "second" / "machine0" / "export" / "model.safetensors").read_bytes() == expected
    assert bucket.files["runs/math/export/model.safetensors"] == expected


async def test_what_the_store_has_lost_or_damaged_is_named_and_one_that_is_away_is_waited_for(
    bucket: Bucket, tmp_path: Path
) -> None:
    model, store = tmp_path / "model", store_of(bucket, tmp_path / "keys")
    write_model(model, "qwen3")
    async with running(tmp_path, model, store=store, async_checkpoint=1) as rig:
        await rig.sft(sft_request(4, version=2))
        files = await save(rig, "c1")
        await save(rig, "c2")
        await save(rig, "c3")
        copies = tmp_path / "machine0" / "checkpoints"
        assert {path.name for path in copies.iterdir()} == {"c2", "c3"}
        damaged = copies / "c3" / "part0.safetensors"
        damaged.write_bytes(b"\0" * damaged.stat().st_size)
        await load(rig, "c3", files)
        assert damaged.read_bytes() == bucket.files[f"{RUN}/c3/part0.safetensors"]
        whole = bucket.files[f"{RUN}/c1/part0.safetensors"]
        bucket.files[f"{RUN}/c1/part0.safetensors"] = b"x" + whole[1:]
        with pytest.raises(CheckpointError, match=r"part0.safetensors has digest"):
            await load(rig, "c1", files)
        bucket.files[f"{RUN}/c1/part0.safetensors"] = whole[:-1]
        with pytest.raises(CheckpointError, match=r"part0.safetensors has .* bytes; its manifest says"):
            await load(rig, "c1", files)
        del bucket.files[f"{RUN}/c1/part0.safetensors"]
        with pytest.raises(CheckpointError, match=r"part0.safetensors is missing"):
            await load(rig, "c1", files)
        bucket.refuse_writes = 503
        with pytest.raises(StoreUnavailableError, match="did not answer well") as told:
            await asyncio.wait_for(save(rig, "c4"), 60)
        assert told.value.retryable
        bucket.refuse_writes = 0
        assert len(await save(rig, "c4")) == 2
