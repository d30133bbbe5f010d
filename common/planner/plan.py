"""Adds up what a run needs on a device and in host memory, per stage and phase, and finds what does not fit first."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.planner import memory
from crescendo.common.planner.memory import TYPE_BYTES, Training
from crescendo.common.planner.shape import Shape

GIB: Final = 2**30
DEVICES_A_MACHINE: Final = 8
BUCKET_BYTES: Final = 256 << 20  # transfer buffer of the channels ipc and nccl
PROCESS_BYTES: Final = 700 << 20  # of a process with PyTorch, on the host (measured: 0.5 to 0.9 GiB)
SERVICES_BYTES: Final = 2 * GIB  # controller, Ray, buffer's server, reward service (measured on the quick start)
HOST_VERSIONS: Final = {"shm": 2, "tcp": 3}  # copies of the weights that a channel keeps on a machine


@dataclass(frozen=True)
class Item:
    """One thing that takes memory. fix: what to change when it does not fit."""

    name: str
    num_bytes: int
    fix: str


@dataclass(frozen=True)
class Phase:
    """What is there at one time. capacity: bytes that there are; None: not known."""

    stage: str
    name: str
    place: str
    items: tuple[Item, ...]
    capacity: int | None

    @property
    def num_bytes(self) -> int:
        """All items together."""
        return sum(item.num_bytes for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.capacity is None or self.num_bytes <= self.capacity

    @property
    def problem(self) -> str:
        """The first item that does not fit, and what to change; empty when all fit."""
        if self.fits or self.capacity is None:
            return ""
        used = 0
        for item in self.items:
            used += item.num_bytes
            if used > self.capacity:
                return (
                    f"stage {self.stage}, {self.name}: {item.name} ({_gib(item.num_bytes)}) does not fit; {self.place} "
                    f"has {_gib(self.capacity)}, and {_gib(self.num_bytes)} are needed. {item.fix}"
                )
        return ""


@dataclass(frozen=True)
class Plan:
    """All phases of all stages, in order."""

    parameters: int
    phases: tuple[Phase, ...]
    concurrency: dict[str, int] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Of the first phase that does not fit; empty when the run fits."""
        return next((phase.problem for phase in self.phases if not phase.fits), "")


@dataclass(frozen=True)
class Machine:
    """What there is. gpus: 0 for a run on cores; gpu_bytes, host_bytes: of one GPU and one machine; None: unknown."""

    gpus: int
    gpu_bytes: int | None = None
    host_bytes: int | None = None


def make_plan(config: Config, shape: Shape, machine: Machine) -> Plan:
    """Plans every stage of every RL step."""
    stages = [stage for step in config.steps if step.kind == "rl" for stage in step.rl.stages]
    planned = [_Stage(config, stage, shape, machine) for stage in stages]
    make: Callable[[_Stage], list[Phase]] = _Stage.on_gpus if machine.gpus else _Stage.on_cores
    concurrency = {each.stage.name: each.concurrency() for each in planned} if machine.gpus else {}
    return Plan(shape.parameters, tuple(phase for each in planned for phase in make(each)), concurrency)


class _Stage:
    """One stage's arithmetic."""

    def __init__(self, config: Config, stage: StageConfig, shape: Shape, machine: Machine) -> None:
        self.config, self.stage, self.shape, self.machine = config, stage, shape, machine
        self.longest = config.data.max_prompt_tokens + stage.max_response_tokens
        tokens = max(config.trainer.max_tokens_per_micro_batch, self.longest)
        self.engine_parallel = stage.layout.engine_tensor_parallel or config.rollout.tensor_parallel
        self.training = Training(
            shape,
            config.model.dtype,
            tokens=tokens,
            scored=stage.max_response_tokens if tokens == self.longest else tokens,
            tensor_parallel=stage.layout.tensor_parallel or config.trainer.tensor_parallel,
            on_gpu=machine.gpus > 0,
        )

    # Items ------------------------------------------------------------------------------------------------

    def _weights(self) -> Item:
        return Item("trainer weights", memory.weights(self.training), f"{self._wider()}")

    def _state(self) -> list[Item]:
        fix = self._wider()
        parts = [
            Item("main weights", memory.main_weights(self.training), fix),
            Item("gradients", memory.gradients(self.training), fix),
            Item("optimizer", memory.optimizer(self.training), fix),
        ]
        return [part for part in parts if part.num_bytes]

    def _working(self) -> list[Item]:
        kept = memory.activations(self.training)
        shorter = (
            "Lower trainer.max_tokens_per_micro_batch."
            if self.training.tokens > self.longest
            else f"Lower the stage's max_response_tokens, or raise trainer.tensor_parallel: one sequence of "
            f"{self.longest} tokens is the smallest micro-batch."
        )
        rest = memory.working(self.training) - kept
        return [Item("activations", kept, shorter), Item("output layer and its gradients", rest, shorter)]

    def _engine_weights(self) -> Item:
        num_bytes = self.shape.parameters * TYPE_BYTES[self.config.model.dtype] // self.engine_parallel
        return Item("engine weights", num_bytes, "Raise rollout.tensor_parallel, or take a smaller model.")

    def _engine_working(self) -> Item:
        rollout = self.config.rollout
        num_bytes = memory.engine_working(
            self.shape,
            self.config.model.dtype,
            rollout.max_batched_tokens,
            rollout.max_concurrency,
            self.engine_parallel,
        )
        return Item("engine's forward pass", num_bytes, "Lower rollout.max_batched_tokens or rollout.max_concurrency.")

    def _sequence_cache(self) -> Item:
        each = memory.kv_cache_per_token(self.shape, self.config.model.dtype, self.engine_parallel)
        return Item(
            f"KV cache of one sequence of {self.longest} tokens",
            each * self.longest,
            "Raise rollout.gpu_memory_utilization or rollout.tensor_parallel, or lower the stage's "
            "max_response_tokens.",
        )

    def _contexts(self) -> Item:
        return Item("CUDA contexts of both sides", 2 * memory.CONTEXT_BYTES, "Take a larger GPU.")

    def _wider(self) -> str:
        return f"Raise trainer.tensor_parallel above {self.training.tensor_parallel}, or take a larger GPU."

    # Phases -----------------------------------------------------------------------------------------------

    def on_gpus(self) -> list[Phase]:
        gpu = self.machine.gpu_bytes
        bucket = Item("transfer bucket", BUCKET_BYTES, "Set trainer.weight_channel to shm.")
        buckets = [bucket] if self.config.trainer.weight_channel in ("ipc", "nccl") else []
        share = None if gpu is None else int(gpu * self.config.rollout.gpu_memory_utilization)
        contexts, engine = self._contexts(), self._engine_weights()
        return [
            self._phase("train", gpu, [contexts, self._weights(), *self._state(), *self._working()]),
            self._phase("publish", gpu, [contexts, self._weights(), engine, *buckets]),
            self._phase("rollout", share, [contexts, engine, self._engine_working(), self._sequence_cache()]),
            self._host(),
        ]

    def _host(self) -> Phase:
        """What lies in one machine's memory while engines hold the devices."""
        devices = min(self.machine.gpus, DEVICES_A_MACHINE)
        state = self._weights().num_bytes + sum(item.num_bytes for item in self._state())
        fix = "Take machines with more memory, or raise trainer.tensor_parallel."
        items = [
            Item("processes", SERVICES_BYTES + 2 * devices * PROCESS_BYTES, fix),
            Item("weights, gradients and optimizer of the trainer, moved away", devices * state, fix),
            *self._channel(),
        ]
        return Phase(self.stage.name, "rollout", "a machine", tuple(items), self.machine.host_bytes)

    def _channel(self) -> list[Item]:
        copies = HOST_VERSIONS.get(self.config.trainer.weight_channel, 0)
        if not copies:
            return []
        num_bytes = copies * self.shape.parameters * TYPE_BYTES[self.config.model.dtype]
        return [
            Item(f"{copies} copies of the weights in the channel", num_bytes, "Set trainer.weight_channel to disk.")
        ]

    def on_cores(self) -> list[Phase]:
        """Nothing moves: both sides' memory is there all the time."""
        rollout, trainer = self.config.rollout, self.config.trainer
        ranks = self.training.tensor_parallel * trainer.data_parallel
        fix = "Take a smaller model, or a machine with more memory."
        cache = Item("KV cache", int(rollout.num_engines * rollout.kv_cache_gib * GIB), "Lower rollout.kv_cache_gib.")
        always = [
            Item("processes", SERVICES_BYTES + (ranks + rollout.num_engines) * PROCESS_BYTES, fix),
            *(Item(i.name, ranks * i.num_bytes, fix) for i in (self._weights(), *self._state())),
            Item("engine weights", rollout.num_engines * self._engine_weights().num_bytes, fix),
            *([cache] if rollout.engine == "vllm" else []),
            *self._channel(),
        ]
        working = [Item(i.name, ranks * i.num_bytes, i.fix) for i in self._working()]
        generating = [Item(i.name, rollout.num_engines * i.num_bytes, i.fix) for i in (self._engine_working(),)]
        host = self.machine.host_bytes
        return [self._phase("train", host, [*always, *working]), self._phase("rollout", host, [*always, *generating])]

    def _phase(self, name: str, capacity: int | None, items: list[Item]) -> Phase:
        place = "a GPU" if self.machine.gpus else "this machine"
        return Phase(self.stage.name, name, place, tuple(items), capacity)

    def concurrency(self) -> int:
        """Longest sequences whose keys and values fit one engine at once; 0 when the GPU's memory is unknown."""
        rollout = next(phase for phase in self.on_gpus() if phase.name == "rollout")
        if rollout.capacity is None:
            return 0
        one = self._sequence_cache().num_bytes
        return max(0, rollout.capacity - rollout.num_bytes + one) // one


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
