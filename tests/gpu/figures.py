"""Figures of one GPU as JSON, a line each: training, hand-over, weights by CUDA IPC. `python -m tests.gpu.figures`.

Each is measured in this process and its children alone; `--dry` runs the same code tiny, on cores, so that it is known
to work before there is a GPU. `--only NAME` measures one.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from crescendo.common.device_memory import device_memory
from crescendo.common.weights import manifest_digest
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.arriving import Arriving
from crescendo.rollout.fetch import NodeCopy
from crescendo.trainer.channels.ipc import IpcChannel
from crescendo.trainer.device import Device
from tests.gpu.bare_model import QWEN_1_5B, TINY, Step

PEAK_FLOPS = 790e12  # dense bf16 that an H200 sustains, the goal's reference
TOKEN = "figures"
FENCE = common_pb2.Fence(epoch=1)


@dataclass(frozen=True)
class Scale:
    """How large: the real thing, or dry. tokens: of the sequence; megabytes: of weights sent."""

    device: torch.device
    tokens: tuple[int, ...]
    megabytes: int
    repeats: int


@dataclass
class Tensor:
    """As the weight channels take it."""

    name: str
    data: torch.Tensor


def scale_of(*, dry: bool) -> Scale:
    if dry:
        return Scale(torch.device("cpu"), (64, 96), 2, 1)
    return Scale(torch.device("cuda:0"), (8192, 24576), 3000, 3)


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
    size = QWEN_1_5B if scale.device.type == "cuda" else TINY
    step = Step(size, scale.device)
    rows = []
    for tokens in scale.tokens:
        if scale.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(scale.device)
        seconds = seconds_of(lambda tokens=tokens: step.run(tokens), scale.device, scale.repeats)  # type: ignore[misc]
        peak = torch.cuda.max_memory_allocated(scale.device) if scale.device.type == "cuda" else 0
        utilisation = size.flops(tokens) / seconds / PEAK_FLOPS
        rows.append({"tokens": tokens, "seconds": seconds, "peak_gib": peak / 2**30, "utilisation": utilisation})
    return {"parameters": sum(parameter.numel() for parameter in step.main), "steps": rows, "goal": 0.45}


def switch(scale: Scale) -> dict[str, Any]:
    """The trainer's state to pinned host memory and back, and what NVML says is free meanwhile."""
    step = Step(QWEN_1_5B if scale.device.type == "cuda" else TINY, scale.device)
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
    return {"gigabytes": num_bytes / 1e9, "moves": rows, "goal_s": 3.0}


def engine(pipe: Connection, device: str, run: str) -> None:
    """The other process: takes each version that it is told of, and says how long that took and what it got."""
    copy = NodeCopy(run, TOKEN)
    while raw := pipe.recv():
        manifest = common_pb2.WeightManifest.FromString(raw)
        local = copy.localize(manifest, FENCE, 60)
        began = time.perf_counter()
        arriving = Arriving(local, torch.device(device))
        for _ in arriving.tensors():
            pass
        wait(torch.device(device))
        pipe.send((time.perf_counter() - began, manifest_digest(manifest.tensors, arriving.digests or [])))


def sync(scale: Scale) -> dict[str, Any]:
    """Weights from this process to another through CUDA IPC, digests on both sides, against a copy on the device."""
    count, values = 16, (scale.megabytes << 20) // 32
    given = [Tensor(f"t{n}", torch.randn(values, device=scale.device).to(torch.bfloat16)) for n in range(count)]
    num_bytes = sum(each.data.numel() * 2 for each in given)
    target = torch.empty_like(given[0].data)
    copy_s = seconds_of(lambda: [target.copy_(each.data) for each in given], scale.device, 3)
    run = f"figures-{os.getpid()}"
    channel = IpcChannel(run, "here", TOKEN)
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
                version=version, channel="ipc", shards=written.shards, tensors=written.tensors, digest=digest
            )
            mine.send(manifest.SerializeToString())
            if not mine.poll(120):
                raise TimeoutError("the other process took nothing within 120 s")
            seconds, found = mine.recv()
            if found != digest:
                raise AssertionError("other bytes came than were sent")
            rows.append({"take_s": seconds, "publish_s": written.seconds})
        mine.send(b"")
        process.join(30)
    finally:
        channel.close()
        if process.is_alive():
            process.terminate()
    best = min(row["take_s"] for row in rows[1:])
    figures = {"gb_per_s": num_bytes / best / 1e9, "copy_gb_per_s": num_bytes / copy_s / 1e9}
    return {**figures, "ratio": figures["gb_per_s"] / figures["copy_gb_per_s"], "rounds": rows, "goal": 0.5}


FIGURES: dict[str, Callable[[Scale], dict[str, Any]]] = {"training": training, "switch": switch, "sync": sync}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny, on cores")
    parser.add_argument("--only", choices=sorted(FIGURES), help="one figure")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("there is no GPU here; --dry runs the same code on cores.", file=sys.stderr)
        return 3
    scale = scale_of(dry=options.dry)
    name = "cores" if options.dry else torch.cuda.get_device_name(0)
    for figure in [options.only] if options.only else FIGURES:
        print(json.dumps({"name": f"gpu.{figure}", "device": name, **FIGURES[figure](scale)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
