"""One stage's phases: what is in a device's and in a machine's memory at one time. Pure; called by plan.py.

On GPUs trainer and engines share devices that change hands (colocated), or have their own (disaggregated). On cores
nothing moves, and both sides are there all the time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from crescendo.common.config.check_rl import stages
from crescendo.common.config.layouts import layout_of, micro_batch_tokens
from crescendo.common.config.rl import AlgorithmConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.planner import engine, memory
from crescendo.common.planner.memory import TYPE_BYTES, Training
from crescendo.common.planner.shape import Shape

GIB: Final = 2**30
GPUS_A_MACHINE: Final = 8
CONTEXT_BYTES: Final = 600 << 20  # of a process that uses CUDA: context, kernels, workspaces (assumed, not measured)
BUCKET_CHANNELS: Final = ("ipc", "nccl")
BUCKET_BYTES: Final = 256 << 20  # their transfer buffer; a larger tensor makes a larger one
GATHERED_TENSORS: Final = 9  # full tensors that a channel copies at once (trainer/channels/mapped.py, MAX_PENDING)
PROCESS_BYTES: Final = 700 << 20  # of a process with PyTorch, on the host (measured: 0.5 to 0.9 GiB)
SERVICES_BYTES: Final = 2 * GIB  # controller, Ray, buffer's server, reward service (measured on the quick start)
HOST_VERSIONS: Final = {"shm": 2, "tcp": 3}  # copies of the weights that a channel keeps on a machine
HELD_VERSIONS: Final = 2  # of gathered tensors in BUCKET_CHANNELS: the one that is published, the one before
MACHINE, THIS_MACHINE = "a machine", "this machine"
PLENTY: Final = 1 << 20  # micro-batches: more than a pipeline has stages


@dataclass(frozen=True)
class Machine:
    """What there is. gpus: of all machines, 0 for a run on cores; gpu_bytes, host_bytes: of one GPU and one machine;
    None: unknown; gpus_a_machine: 0 for at most GPUS_A_MACHINE."""

    gpus: int
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    gpus_a_machine: int = 0

    @property
    def gpus_here(self) -> int:
        """GPUs of one machine."""
        return min(self.gpus, self.gpus_a_machine or GPUS_A_MACHINE)


@dataclass(frozen=True)
class Item:
    """One thing that takes memory."""

    name: str
    num_bytes: int


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
    def is_host(self) -> bool:
        """Whether this is about a machine's memory, not a device's."""
        return self.place in (MACHINE, THIS_MACHINE)

    @property
    def problem(self) -> str:
        """The first item that does not fit; empty when all fit."""
        if self.fits or self.capacity is None:
            return ""
        used = 0
        for item in self.items:
            used += item.num_bytes
            if used > self.capacity:
                break
        return (
            f"stage {self.stage}, {self.name}: {item.name} ({gib(item.num_bytes)}) does not fit; {self.place} "
            f"has {gib(self.capacity)}, and {gib(self.num_bytes)} are needed."
        )


class StagePlan:
    """One stage's arithmetic."""

    def __init__(self, config: Config, stage: StageConfig, shape: Shape, machine: Machine) -> None:
        self.config, self.stage, self.shape, self.machine = config, stage, shape, machine
        self.layout = layout_of(config, stage)
        self.longest = config.data.max_prompt_tokens + stage.max_response_tokens
        self.dtype = config.model.dtype

    @property
    def apart(self) -> bool:
        """Whether trainer and engines have devices of their own."""
        return self.layout.rollout_devices > 0

    @property
    def devices(self) -> int:
        """Devices that ranks and engines take."""
        ranks, engines = self.layout.num_ranks, self.layout.engine_devices
        return ranks + engines if self.apart else max(ranks, engines)

    @property
    def is_divided(self) -> bool:
        """Whether layers and experts are divided evenly."""
        layout, shape = self.layout, self.shape
        replicas = layout.data_parallel * layout.context_parallel
        return not (shape.num_layers % layout.pipeline_parallel or replicas % layout.expert_parallel)

    @cached_property
    def ranks(self) -> list[Training]:
        """A rank of each pipeline stage."""
        layout, trainer, stage = self.layout, self.config.trainer, self.stage
        tokens = max(micro_batch_tokens(self.config, stage), self.longest)
        return [
            Training(
                self.shape,
                self.dtype,
                tokens=tokens,
                scored=stage.max_response_tokens if tokens == self.longest else tokens,
                tensor_parallel=layout.tensor_parallel,
                pipeline_parallel=layout.pipeline_parallel,
                context_parallel=layout.context_parallel,
                data_parallel=layout.data_parallel,
                expert_parallel=layout.expert_parallel,
                stage=index,
                micro_batches=PLENTY,
                recompute=trainer.recompute,
                distributed=trainer.distributed_optimizer,
                on_gpu=self.machine.gpus > 0,
            )
            for index in range(layout.pipeline_parallel)
        ]

    # Items ------------------------------------------------------------------------------------------------

    def _state(self, rank: Training) -> list[Item]:
        """What a rank holds all the time."""
        parts = [
            Item("trainer weights", memory.weights(rank)),
            Item("main weights", memory.main_weights(rank)),
            Item("gradients", memory.gradients(rank)),
            Item("optimizer", memory.optimizer(rank)),
        ]
        return [part for part in parts if part.num_bytes]

    def _working(self, rank: Training) -> list[Item]:
        kept = memory.activations(rank)
        layers = f"activations of {rank.tokens} tokens"
        if rank.in_flight > 1:
            layers = f"activations of {rank.in_flight} micro-batches of {rank.tokens} tokens"
        return [Item(layers, kept), Item("output layer and gradients on their way", memory.peak(rank) - kept)]

    def _engine_weights(self) -> Item:
        num_bytes = engine.engine_weights(self.shape, self.dtype, self.layout.engine_tensor_parallel)
        return Item("engine weights", num_bytes)

    def _engine_working(self) -> Item:
        rollout = self.config.rollout
        sizes = (rollout.max_batched_tokens, rollout.max_concurrency, self.layout.engine_tensor_parallel)
        return Item("engine's forward pass", engine.engine_working(self.shape, self.dtype, *sizes))

    def _sequence_cache(self) -> Item:
        each = engine.kv_cache_per_token(self.shape, self.dtype, self.layout.engine_tensor_parallel)
        return Item(f"KV cache of one sequence of {self.longest} tokens", each * self.longest)

    @property
    def _is_gathered(self) -> bool:
        """Whether ranks hold parts of the weights, so that full tensors are made of them to be published."""
        return max(self.layout.tensor_parallel, self.layout.pipeline_parallel, self.layout.expert_parallel) > 1

    def _on_their_way(self) -> list[Item]:
        """Full tensors, gathered from the ranks that have their parts, and the buffer that engines read."""
        item_bytes, in_place = TYPE_BYTES[self.dtype], self.config.trainer.weight_channel in BUCKET_CHANNELS
        items = []
        if self._is_gathered:
            layer = self.shape.hidden_size * max(self.shape.ffn_size, self.shape.query_size)
            gathered = self.shape.embedding_parameters + (GATHERED_TENSORS - 1) * layer
            if in_place:  # each goes to the host before the next: its parts, what they make, and the one before
                gathered = 2 * self.shape.embedding_parameters + layer
            items.append(Item("gathered tensors", min(gathered, self.shape.parameters) * item_bytes))
        if in_place:
            largest = max(self.shape.embedding_parameters, self.shape.hidden_size * self.shape.ffn_size) * item_bytes
            bucket = min(max(BUCKET_BYTES, largest), self.shape.parameters * item_bytes)
            items.append(Item("transfer bucket and the engine's copy", (1 if self.apart else 2) * bucket))
        return items

    # Phases -----------------------------------------------------------------------------------------------

    def on_gpus(self) -> list[Phase]:
        """Of a device that trains, of one that generates, and of a machine."""
        return [*self._training(), self._publishing(), self._rollout(), *self._hosts()]

    def _training(self) -> list[Phase]:
        """By the ranks that need most."""
        contexts = self._contexts(1 if self.apart else 2)
        phases = [self._of_rank("train", {r: [contexts, *self._state(r), *self._working(r)] for r in self.ranks})]
        if self.config.trainer.distributed_optimizer:
            saving = {
                rank: [contexts, *self._state(rank), Item("a part of the state, gathered", memory.checkpoint(rank))]
                for rank in self.ranks
            }
            phases.append(self._of_rank("checkpoint", saving))
        return phases

    def _of_rank(self, name: str, items: dict[Training, list[Item]]) -> Phase:
        rank = max(items, key=lambda each: sum(item.num_bytes for item in items[each]))
        where = f" of pipeline stage {rank.stage}" if rank.pipeline_parallel > 1 else ""
        side = "a trainer's GPU" if self.apart else "a GPU"
        return self._phase(name, side + where, self.machine.gpu_bytes, items[rank])

    def _publishing(self) -> Phase:
        weights = max((self._state(rank)[0] for rank in self.ranks), key=lambda item: item.num_bytes)
        capacity, bucket = self.machine.gpu_bytes, self._on_their_way()
        if self.apart:
            return self._phase("publish", "a trainer's GPU", capacity, [self._contexts(1), weights, *bucket])
        items = [self._contexts(2), weights, self._engine_weights(), *bucket]
        return self._phase("publish", "a GPU", capacity, items)

    def _rollout(self) -> Phase:
        gpu, share = self.machine.gpu_bytes, self.config.rollout.gpu_memory_utilization
        items = [
            self._contexts(1 if self.apart else 2),
            self._engine_weights(),
            self._engine_working(),
            self._sequence_cache(),
        ]
        capacity = None if gpu is None else int(gpu * share)
        return self._phase("rollout", f"an engine's share of a GPU ({share:.0%})", capacity, items)

    @staticmethod
    def _contexts(sides: int) -> Item:
        return Item("CUDA contexts of both sides" if sides == 2 else "CUDA context", sides * CONTEXT_BYTES)

    def _hosts(self) -> list[Phase]:
        """A machine's memory; disaggregated, that of one with trainer ranks alone."""
        here, trainer = self.machine.gpus_here, self.config.trainer
        ranks = min(here, self.layout.num_ranks)
        engines = 0 if self.apart else min(here, self.layout.engine_devices)
        processes = Item("processes", SERVICES_BYTES + (ranks + engines) * PROCESS_BYTES)
        away = [] if self.apart else [self._moved_away(ranks)]
        copied = Item("checkpoint's copy", self._checkpoint_copy(ranks))
        phases = []
        if trainer.distributed_optimizer and not trainer.async_checkpoint:
            phases.append(self._host("checkpoint", [processes, *away, *self._channel(), copied]))
        later = [copied] if trainer.async_checkpoint else []
        return [*phases, self._host("rollout", [processes, *away, *self._channel(), *later])]

    def _moved_away(self, ranks: int) -> Item:
        """Pinned memory, which PyTorch hands out in powers of two (ATen/core/CachingHostAllocator.h) and keeps."""
        each = max(sum(_power_of_two(item.num_bytes) for item in self._state(rank)) for rank in self.ranks)
        return Item("trainer's weights and state, moved away", ranks * each)

    def _checkpoint_copy(self, ranks: int) -> int:
        """Of the ranks here that hold something that no other does."""
        layout = self.layout
        unique = layout.tensor_parallel * layout.pipeline_parallel * layout.expert_parallel
        each = max(memory.checkpoint_copy(rank, moments=not self._algorithm().reset_optimizer) for rank in self.ranks)
        return min(ranks, unique) * each

    def _algorithm(self) -> AlgorithmConfig:
        own = [step.rl.algorithm for step in self.config.steps if any(s is self.stage for s in step.rl.stages)]
        return own[0] if own else AlgorithmConfig()

    def _channel(self) -> list[Item]:
        channel = self.config.trainer.weight_channel
        copies = HOST_VERSIONS.get(channel, 0)
        if channel in BUCKET_CHANNELS and self._is_gathered:
            copies = HELD_VERSIONS
        if not copies:
            return []
        num_bytes = copies * self.shape.parameters * TYPE_BYTES[self.dtype]
        return [Item(f"{copies} copies of the weights in the channel", num_bytes)]

    def on_cores(self) -> list[Phase]:
        """Nothing moves: both sides' memory is there all the time."""
        rollout, engines = self.config.rollout, self.layout.num_engines
        everyone = [rank for rank in self.ranks for _ in range(self.layout.num_ranks // len(self.ranks))]
        processes = self.layout.num_ranks + engines * self.layout.engine_tensor_parallel
        cache = Item("KV cache", int(engines * rollout.kv_cache_gib * GIB))
        weights = engines * self.layout.engine_tensor_parallel * self._engine_weights().num_bytes
        always = [
            Item("processes", SERVICES_BYTES + processes * PROCESS_BYTES),
            *_together(self._state(rank) for rank in everyone),
            Item("engine weights", weights),
            *([cache] if rollout.engine == "vllm" else []),
            *self._channel(),
        ]
        if self.config.trainer.async_checkpoint:
            always.append(Item("checkpoint's copy", self._checkpoint_copy(self.layout.num_ranks)))
        working = _together(self._working(rank) for rank in everyone)
        generating = Item("engines' forward pass", engines * self._engine_working().num_bytes)
        return [self._host("train", [*always, *working]), self._host("rollout", [*always, generating])]

    def _host(self, name: str, items: list[Item]) -> Phase:
        place = MACHINE if self.machine.gpus else THIS_MACHINE
        return self._phase(name, place, self.machine.host_bytes, items)

    def _phase(self, name: str, place: str, capacity: int | None, items: list[Item]) -> Phase:
        return Phase(self.stage.name, name, place, tuple(items), capacity)

    @cached_property
    def _phases(self) -> list[Phase]:
        return self.on_gpus() if self.machine.gpus else self.on_cores()

    def phases(self) -> list[Phase]:
        """All, in the order in which a run comes to them."""
        return self._phases

    def problems(self) -> list[str]:
        """What does not fit, in order: too many ranks, then too many bytes."""
        have, found = self.machine.gpus, []
        if 0 < have < self.devices:
            found.append(
                f"stage {self.stage.name}: {self.layout} take {self.devices} GPUs ({self.layout.num_ranks} of ranks, "
                f"{self.layout.engine_devices} of engines), and there are {have}."
            )
        return found + [phase.problem for phase in self.phases() if not phase.fits]

    @property
    def worst(self) -> tuple[int, int]:
        """How far the first problem is from fitting: devices too many, then bytes too many."""
        over = [phase.num_bytes - (phase.capacity or 0) for phase in self.phases() if not phase.fits]
        return max(0, self.devices - self.machine.gpus) if self.machine.gpus else 0, over[0] if over else 0

    def concurrency(self) -> int:
        """Longest sequences whose keys and values fit one engine at once; 0 when the GPU's memory is unknown."""
        rollout, one = self._rollout(), self._sequence_cache().num_bytes
        if rollout.capacity is None:
            return 0
        return max(0, rollout.capacity - rollout.num_bytes + one) // one


def _together(ranks: Iterable[list[Item]]) -> list[Item]:
    """The same items of many ranks, added up."""
    return [Item(same[0].name, sum(item.num_bytes for item in same)) for same in zip(*ranks, strict=True)]


def _power_of_two(num_bytes: int) -> int:
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0


def gib(num_bytes: int) -> str:
    """For people."""
    return f"{num_bytes / GIB:.2f} GiB"


def plan_stages(config: Config, shape: Shape, machine: Machine) -> list[StagePlan]:
    """Every stage of every RL step."""
    return [StagePlan(config, stage, shape, machine) for _, stage in stages(config)]


def shortage(planned: Iterable[StagePlan]) -> str:
    """The first thing that does not fit: too many ranks, or too many bytes. Empty when all fits."""
    return next((problem for stage in planned for problem in stage.problems()), "")
