"""`python -m crescendo.cli.engine_host --spec-file PATH --ready-file PATH`: a RolloutService over a model folder.

Started by data_services.py for commands that need answers and no run. The engine starts with dummy weights and gets
the folder's own the way it gets every version: by a manifest (its safetensors files are the shards), attested before
they are admitted. Serves until SIGTERM or SIGINT; dies with its parent.
"""

import argparse
import asyncio
import json
import mmap
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from crescendo.common.config.load import save_resolved
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config, DataSourceConfig, ScorerConfig, StepConfig
from crescendo.common.errors import CrescendoError, DataError, WeightMismatchError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import ENTRY_POINT_GROUP, RunningService, ServiceSpec
from crescendo.common.weights import manifest_digest, tensor_digest
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc

GRACE_S = 5.0
LOAD_S = 600.0
FENCE = common_pb2.Fence(epoch=1, counter=1)
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_HEADER_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crescendo.cli.engine_host")
    parser.add_argument("--spec-file", type=Path, required=True, help="ServiceSpec as JSON")
    parser.add_argument("--ready-file", type=Path, required=True, help="gets host:port once weights are admitted")
    arguments = parser.parse_args()
    spec = ServiceSpec.from_json(arguments.spec_file.read_text(encoding="utf-8"))
    try:
        asyncio.run(_serve(spec, arguments.ready_file))
    except CrescendoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


async def _serve(spec: ServiceSpec, ready_file: Path) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    save_resolved(engine_config(spec), RunFolder(Path(spec.run_folder)).config)
    (rollout,) = entry_points(group=ENTRY_POINT_GROUP, name="rollout")
    service: RunningService = await rollout.load()(spec)
    try:
        await _load(service.address, spec)
        write_atomically(ready_file, service.address)
        await stopping.wait()
    finally:
        await service.stop(GRACE_S)


async def _load(address: str, spec: ServiceSpec) -> None:
    """Has the engine load the folder's weights and prove it; raises WeightMismatchError if it cannot."""
    manifest = await asyncio.to_thread(folder_manifest, Path(spec.model_path))
    client = Client(Endpoint(address, spec.token), rollout_pb2_grpc.RolloutServiceStub)
    try:
        update = rollout_pb2.UpdateWeightsRequest(fence=FENCE, idempotency_key="folder", manifest=manifest)
        answer = await client.call(client.stub.UpdateWeights, update, timeout_s=LOAD_S)
        if answer.attestation.digest != manifest.digest:
            raise WeightMismatchError("the engine holds other weights than the folder.", field="model")
        admit = rollout_pb2.AdmitRequest(fence=FENCE, version=manifest.version)
        await client.call(client.stub.Admit, admit, timeout_s=LOAD_S)
    finally:
        await client.close()


def engine_config(spec: ServiceSpec) -> Config:
    """A run's config as far as the rollout service reads it; data and rewards are there because every run has them.

    Options: max_prompt_tokens, max_tokens, kv_cache_gib.
    """
    options = spec.options
    unused = DataSourceConfig(name="task", path="clock_sum", num_prompts=1, domain="math")
    config = Config()
    config.run.name = "data"
    config.model.source = spec.model_path
    config.model.dtype = "float32" if spec.device == "cpu" else "bfloat16"
    config.data.train = config.data.validation = unused
    config.rewards.chains = {"math": [ScorerConfig(scorer="exact_match")]}
    config.data.max_prompt_tokens = int(options["max_prompt_tokens"])
    config.rollout.kv_cache_gib = float(options["kv_cache_gib"])
    config.rollout.prefix_caching = True  # the samples of a question share their prompt
    config.deadlines.start_s = LOAD_S
    stage = StageConfig(name="data", max_response_tokens=int(options["max_tokens"]))
    config.steps = [StepConfig(kind="rl", rl=RlStepConfig(stages=[stage]))]
    return config


def folder_manifest(folder: Path) -> common_pb2.WeightManifest:
    """A model folder's safetensors files as version 1; raises DataError when there is none, or it is damaged."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} has no *.safetensors.", field="model", fix="Give a folder in Hugging Face format.")
    tensors = [tensor for shard, file in enumerate(files) for tensor in _tensors(file, shard)]
    return common_pb2.WeightManifest(
        version=1,
        channel="disk",
        shards=[common_pb2.WeightShard(address=str(file), num_bytes=file.stat().st_size) for file in files],
        tensors=tensors,
        digest=manifest_digest(tensors, [tensor.digest for tensor in tensors]),
    )


def _tensors(file: Path, shard: int) -> Iterator[common_pb2.TensorSpec]:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
        start, header = _header(file, data)
        with memoryview(data) as view:
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = (start + int(offset) for offset in entry["data_offsets"])
                yield common_pb2.TensorSpec(
                    name=name,
                    dtype=_DTYPES.get(entry["dtype"], entry["dtype"]),
                    shape=entry["shape"],
                    offset=begin,
                    num_bytes=end - begin,
                    digest=tensor_digest(view[begin:end]),
                    shard=shard,
                )


def _header(file: Path, data: mmap.mmap) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and their table (safetensors' format: a length of 8 bytes, JSON, bytes)."""
    length = int.from_bytes(data[:_HEADER_BYTES], "little")
    try:
        if length > min(_MAX_HEADER_BYTES, len(data) - _HEADER_BYTES):
            raise ValueError(f"its header has {length} bytes")
        return _HEADER_BYTES + length, json.loads(data[_HEADER_BYTES : _HEADER_BYTES + length])
    except ValueError as error:
        raise DataError(f"{file} is no safetensors file: {error}.", field="model", fix="Copy it again.") from None


if __name__ == "__main__":
    sys.exit(main())
