"""torch.distributed and Megatron's parallel groups: brought up once a process, taken down at its end.

Called by trainer/worker.py in the compute thread. Ranks meet at host:port within a deadline; a gang of one
needs no port. Collectives carry the deadline too, so that a dead rank turns into an error on the others.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.distributed import HashStore  # type: ignore[attr-defined]

from crescendo.common.errors import ConfigError, WorkerStartError
from crescendo.trainer.megatron import cpu


@dataclass(frozen=True)
class Layout:
    """Where this rank stands. data * context * tensor * pipeline sizes give the world's size.

    Tensor parallelism divides matrices, pipeline parallelism layers, context parallelism the positions of each
    sequence, data parallelism sequences. Expert parallelism divides experts over ranks that otherwise hold the
    same weights: it adds no ranks. Groups are None where their dimension is one.

    reduce_group: ranks with the same dense weights (data and context); expert_reduce_group: with the same experts;
    model_group: tensor and pipeline ranks of one replica; embedding_group: the first and the last stage.
    """

    rank: int
    world_size: int
    device: torch.device
    tensor_parallel: int = 1
    data_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    tensor_rank: int = 0
    data_rank: int = 0
    pipeline_rank: int = 0
    context_rank: int = 0
    expert_rank: int = 0
    replica_rank: int = 0
    tensor_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None
    pipeline_group: dist.ProcessGroup | None = None
    context_group: dist.ProcessGroup | None = None
    expert_group: dist.ProcessGroup | None = None
    reduce_group: dist.ProcessGroup | None = None
    expert_reduce_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None
    embedding_group: dist.ProcessGroup | None = None

    @property
    def speaks(self) -> bool:
        """Whether this rank answers for the gang."""
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank scores tokens."""
        return self.pipeline_rank == self.pipeline_parallel - 1

    @property
    def holds_unique_weights(self) -> bool:
        """Whether this rank is the first that holds its weights: such ranks together hold the model once.

        With expert parallelism the dense weights lie on every expert rank, of which rank 0 counts.
        """
        return self.replica_rank == 0


def start(
    *,
    rank: int,
    world_size: int,
    rendezvous: str,
    device: str,
    timeout_s: float,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
) -> Layout:
    """Meets the other ranks and builds the groups.

    Raises ConfigError when the layout does not fit the number of ranks, WorkerStartError when the ranks do not
    meet within timeout_s.
    """
    product = tensor_parallel * pipeline_parallel * context_parallel
    if product < 1 or world_size % product:
        raise ConfigError(
            f"trainer.tensor_parallel * pipeline_parallel * context_parallel is {product}; it must divide the number "
            f"of ranks, {world_size}.",
            field="trainer.tensor_parallel",
            fix="Choose sizes whose product with data_parallel is the number of ranks.",
        )
    replicas = world_size // (tensor_parallel * pipeline_parallel)
    if expert_parallel < 1 or replicas % expert_parallel:
        raise ConfigError(
            f"trainer.expert_parallel is {expert_parallel}; it must divide data_parallel * context_parallel, "
            f"{replicas}.",
            field="trainer.expert_parallel",
        )
    on_gpu = device.startswith(("cuda", "gpu"))
    _meet(rank, world_size, rendezvous, "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s)
    if on_gpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:
        cpu.install()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        context_parallel_size=context_parallel,
        expert_model_parallel_size=expert_parallel,
    )
    if on_gpu:
        model_parallel_cuda_manual_seed(0)
    return _layout(rank, world_size, on_gpu)


def _meet(rank: int, world_size: int, rendezvous: str, backend: str, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    try:
        if world_size == 1:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(
                backend, init_method=f"tcp://{rendezvous}", rank=rank, world_size=world_size, timeout=timeout
            )
    except (RuntimeError, ValueError) as error:
        raise WorkerStartError(
            f"trainer rank {rank} of {world_size} could not meet the others at {rendezvous or 'itself'} "
            f"within {timeout_s:.0f} s: {error}",
            fix="Look at the logs of the other trainer ranks; check that the rendezvous port is free.",
        ) from error


def _layout(rank: int, world_size: int, on_gpu: bool) -> Layout:
    state = parallel_state
    return Layout(
        rank=rank,
        world_size=world_size,
        device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        tensor_parallel=state.get_tensor_model_parallel_world_size(),
        data_parallel=state.get_data_parallel_world_size(),
        pipeline_parallel=state.get_pipeline_model_parallel_world_size(),
        context_parallel=state.get_context_parallel_world_size(),
        expert_parallel=state.get_expert_model_parallel_world_size(),
        tensor_rank=state.get_tensor_model_parallel_rank(),
        data_rank=state.get_data_parallel_rank(),
        pipeline_rank=state.get_pipeline_model_parallel_rank(),
        context_rank=state.get_context_parallel_rank(),
        expert_rank=state.get_expert_model_parallel_rank(),
        replica_rank=state.get_expert_data_parallel_rank(),
        tensor_group=_unless_alone(state.get_tensor_model_parallel_group()),
        data_group=_unless_alone(state.get_data_parallel_group()),
        pipeline_group=_unless_alone(state.get_pipeline_model_parallel_group()),
        context_group=_unless_alone(state.get_context_parallel_group()),
        expert_group=_unless_alone(state.get_expert_model_parallel_group()),
        reduce_group=_unless_alone(state.get_data_parallel_group(with_context_parallel=True)),
        expert_reduce_group=_unless_alone(state.get_expert_data_parallel_group()),
        model_group=_unless_alone(state.get_model_parallel_group()),
        embedding_group=_unless_alone(state.get_embedding_group(check_initialized=False)),
    )


def _unless_alone(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    # A rank between the first and the last stage belongs to no embedding group: torch gives it a placeholder.
    return group if isinstance(group, dist.ProcessGroup) and dist.get_world_size(group) > 1 else None


def stop() -> None:
    """Takes the groups down; safe to call twice."""
    if not dist.is_initialized():
        return
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    cpu.remove()
