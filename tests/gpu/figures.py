"""Figures of one GPU as JSON, a line each: training, hand-over, weights by CUDA IPC and by the channel nccl.

    PYTHONPATH=src python3 -m tests.gpu.figures [--only NAME] [--dry]

Each is measured in this process and its children alone; `--dry` runs the same code tiny, on cores, so that it is known
to work before there is a GPU. `training` needs PyTorch alone; the others need the light packages that the weight
channels and the lease stand on (grpcio, protobuf, xxhash, nvidia-ml-py, ...). A figure whose packages are missing says
so in its line, and the others are measured.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from tests.gpu.bare_model import QWEN_1_5B, TINY, Step

PEAK_FLOPS = 790e12  # dense bf16 that an H200 sustains, the goal's reference
UTILISATION_GOAL, UTILISATION_TOKENS = 0.45, 8192
SWITCH_GOAL_S = 3.0
COPY_GOAL = 0.5
TOKEN = "figures"
NO_GPU, MISSING = 3, 4


@dataclass(frozen=True)
class Scale:
    """How large: the real thing, or dry. tokens: of a sequence; megabytes: of weights sent."""

    device: torch.device
    tokens: tuple[int, ...]
    sequences: int
    megabytes: int
    repeats: int

    @property
    def size(self) -> Any:
        return QWEN_1_5B if self.device.type == "cuda" else TINY


@dataclass
class Tensor:
    """As the weight channels take it."""

    name: str
    data: torch.Tensor


def scale_of(*, dry: bool) -> Scale:
    if dry:
        return Scale(torch.device("cpu"), (64, 96), 2, 2, 1)
    return Scale(torch.device("cuda:0"), (UTILISATION_TOKENS, 24576), 4, 3000, 3)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least of some repetitions after a first one."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def training(scale: Scale) -> dict[str, Any]:
    """Steps of a 1.5B Qwen2-shaped model at each length: seconds, peak memory, share of the GPU's FLOP/s."""
    step = Step(scale.size, scale.device)
    rows = []
    for tokens in scale.tokens:
        if scale.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(scale.device)
        work = lambda tokens=tokens: step.run(tokens, scale.sequences)  # noqa: E731
        seconds = seconds_of(work, scale.device, scale.repeats)
        peak = torch.cuda.max_memory_allocated(scale.device) if scale.device.type == "cuda" else 0
        utilisation = scale.sequences * scale.size.flops(tokens) / seconds / PEAK_FLOPS
        rows.append({"tokens": tokens, "seconds": seconds, "peak_gib": peak / 2**30, "utilisation": utilisation})
    return {
        "parameters": sum(parameter.numel() for parameter in step.main),
        "sequences": scale.sequences,
        "steps": rows,
        "goal": UTILISATION_GOAL,
        "met": rows[0]["utilisation"] >= UTILISATION_GOAL,
    }


def switch(scale: Scale) -> dict[str, Any]:
    """The trainer's state to pinned host memory and back, and what NVML says is free meanwhile."""
    from crescendo.common.device_memory import device_memory
    from crescendo.trainer.device import Device

    step = Step(scale.size, scale.device)
    step.run(scale.tokens[0])
    device, buffers = Device(scale.device), step.buffers()
    before = [buffer.float().sum().item() for buffer in buffers[:4]]
    num_bytes = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    rows = []
    for _ in range(scale.repeats + 1):  # the first also pins host memory
        wait(scale.device)
        began = time.perf_counter()
        device.release("offload", buffers)
        away_s = time.perf_counter() - began
        free = device_memory().free_bytes if scale.device.type == "cuda" else 0
        began = time.perf_counter()
        device.acquire()
        rows.append({"away_s": away_s, "back_s": time.perf_counter() - began, "free_gib_while_away": free / 2**30})
    if [buffer.float().sum().item() for buffer in buffers[:4]] != before:
        raise AssertionError("what came back is not what went away")
    away_s, back_s = (statistics.median(row[key] for row in rows[1:]) for key in ("away_s", "back_s"))
    return {
        "gigabytes": num_bytes / 1e9,
        "away_s": away_s,
        "back_s": back_s,
        "moves": rows,
        "goal_s": SWITCH_GOAL_S,
        "met": max(away_s, back_s) <= SWITCH_GOAL_S,
    }


def engine(pipe: Connection, device: str, run: str) -> None:
    """The other process: takes each version that it is told of, and says how long that took and what it got.

    Seconds: of all, digests and waiting included, and of the copies out of the shared buffer alone.
    """
    from crescendo.common.weights import manifest_digest
    from crescendo.proto.v1 import common_pb2
    from crescendo.rollout.engine import buckets
    from crescendo.rollout.engine.arriving import Arriving
    from crescendo.rollout.fetch import NodeCopy

    copied_s = [0.0]
    copy_out = buckets._copy

    def timed(*arguments: Any) -> torch.Tensor:
        began = time.perf_counter()
        copied = copy_out(*arguments)
        copied_s[0] += time.perf_counter() - began
        return copied

    buckets._copy = timed
    copy = NodeCopy(run, TOKEN)
    while raw := pipe.recv():
        manifest = common_pb2.WeightManifest.FromString(raw)
        local = copy.localize(manifest, common_pb2.Fence(epoch=1), 60)
        copied_s[0], began = 0.0, time.perf_counter()
        arriving = Arriving(local, torch.device(device))
        for _ in arriving.tensors():
            pass
        wait(torch.device(device))
        seconds = time.perf_counter() - began
        pipe.send((seconds, copied_s[0], manifest_digest(manifest.tensors, arriving.digests or [])))


def sync(scale: Scale, name: str = "ipc") -> dict[str, Any]:
    """Weights from this process to another through CUDA IPC, digests on both sides, against a copy on the device.

    The goal is for the copy that the other process makes out of the shared buffer; filling it is a second copy.
    """
    from crescendo.common.weights import manifest_digest
    from crescendo.proto.v1 import common_pb2
    from crescendo.trainer.channels.ipc import IpcChannel
    from crescendo.trainer.channels.nccl import NcclChannel

    count, values = 16, (scale.megabytes << 20) // 32
    given = [Tensor(f"t{n}", torch.randn(values, device=scale.device).to(torch.bfloat16)) for n in range(count)]
    num_bytes = sum(each.data.numel() * 2 for each in given)
    target = torch.empty_like(given[0].data)
    copy_s = seconds_of(lambda: [target.copy_(each.data) for each in given], scale.device, 3)
    run = f"figures-{os.getpid()}"
    channel = (IpcChannel if name == "ipc" else NcclChannel)(run, "here", TOKEN)
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=engine, args=(other, str(scale.device), run), daemon=True)
    process.start()
    rows = []
    try:
        for version in range(1, scale.repeats + 3):
            written = channel.write(version, [(e.name, tuple(e.data.shape)) for e in given], "bfloat16", given)
            digest = manifest_digest(written.tensors, [spec.digest for spec in written.tensors])
            manifest = common_pb2.WeightManifest(
                version=version, channel=name, shards=written.shards, tensors=written.tensors, digest=digest
            )
            mine.send(manifest.SerializeToString())
            if not mine.poll(120):
                raise TimeoutError("the other process took nothing within 120 s")
            seconds, copied_s, found = mine.recv()
            if found != digest:
                raise AssertionError("other bytes came than were sent")
            rows.append({"take_s": seconds, "copy_s": copied_s, "publish_s": written.seconds})
        mine.send(b"")
        process.join(30)
    finally:
        channel.close()
        if process.is_alive():
            process.terminate()
    best = {key: min(row[key] for row in rows[1:]) for key in ("take_s", "copy_s")}
    ratio = copy_s / best["copy_s"] if best["copy_s"] else 0.0  # no copy: it came by broadcast
    return {
        "gigabytes": num_bytes / 1e9,
        "device_copy_gb_per_s": num_bytes / copy_s / 1e9,
        "with_digests_gb_per_s": num_bytes / best["take_s"] / 1e9,
        "copy_gb_per_s": num_bytes / best["copy_s"] / 1e9 if best["copy_s"] else 0.0,
        "ratio": ratio,
        "rounds": rows,
        "goal": COPY_GOAL,
        "met": ratio >= COPY_GOAL,
    }


def nccl(scale: Scale) -> dict[str, Any]:
    """The channel nccl as far as one GPU goes: an engine on the publisher's GPU, and a group of one that is aborted."""
    from datetime import timedelta

    from crescendo.common.broadcast import BroadcastGroup
    from crescendo.proto.v1 import weights_pb2

    found = sync(scale, "nccl")
    backend = "nccl" if scale.device.type == "cuda" else "gloo"
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    seat = weights_pb2.GroupHandle(size=1, backend=backend, timeout_seconds=60)
    began = time.perf_counter()
    group = BroadcastGroup(torch, seat, own_host="127.0.0.1", store=store)
    data = torch.ones(1 << 20, dtype=torch.uint8, device=scale.device)
    group.broadcast(data)
    meet_s = time.perf_counter() - began
    group.close(broken=False)
    if int(data.sum()) != 1 << 20:
        raise AssertionError("a broadcast changed its data")
    return {**found, "backend": backend, "meet_and_broadcast_s": meet_s}


FIGURES: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "training": training,
    "switch": switch,
    "sync": sync,
    "nccl": nccl,
}


def measured(figure: str, scale: Scale) -> dict[str, Any]:
    """A figure's values, or which package it lacks."""
    try:
        return FIGURES[figure](scale)
    except ImportError as error:
        return {"skipped": f"{error}; install it, or set PYTHONPATH=src for crescendo itself"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny, on cores")
    parser.add_argument("--only", choices=sorted(FIGURES), help="one figure")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("there is no GPU here; --dry runs the same code on cores.", file=sys.stderr)
        return NO_GPU
    scale = scale_of(dry=options.dry)
    device = "cores" if options.dry else torch.cuda.get_device_name(0)
    skipped = False
    for figure in [options.only] if options.only else FIGURES:
        values = measured(figure, scale)
        skipped |= "skipped" in values
        print(json.dumps({"name": f"gpu.{figure}", "device": device, "torch": torch.__version__, **values}), flush=True)
        if not options.dry:
            torch.cuda.empty_cache()  # the next one begins with the GPU as it was
    return MISSING if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
