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
    """Where this rank stands. tensor_parallel * data_parallel is the world's size.

    tensor_group and data_group are None where the dimension is one.
    """

    rank: int
    world_size: int
    tensor_parallel: int
    data_parallel: int
    tensor_rank: int
    data_rank: int
    device: torch.device
    tensor_group: dist.ProcessGroup | None
    data_group: dist.ProcessGroup | None

    @property
    def speaks(self) -> bool:
        """Whether this rank answers for the gang."""
        return self.rank == 0


def start(
    *, rank: int, world_size: int, rendezvous: str, tensor_parallel: int, device: str, timeout_s: float
) -> Layout:
    """Meets the other ranks and builds the groups.

    Raises ConfigError when the layout does not fit the number of ranks, WorkerStartError when the ranks do not
    meet within timeout_s.
    """
    if tensor_parallel < 1 or world_size % tensor_parallel:
        raise ConfigError(
            f"trainer.tensor_parallel is {tensor_parallel}; it must divide the number of ranks, {world_size}.",
            field="trainer.tensor_parallel",
            fix="Choose data_parallel * tensor_parallel equal to the number of ranks.",
        )
    on_gpu = device.startswith(("cuda", "gpu"))
    _meet(rank, world_size, rendezvous, "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s)
    return _groups(rank, world_size, tensor_parallel, on_gpu)


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


def _groups(rank: int, world_size: int, tensor_parallel: int, on_gpu: bool) -> Layout:
    if on_gpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        cpu.install()
        device = torch.device("cpu")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    if on_gpu:
        model_parallel_cuda_manual_seed(0)
    data_parallel = world_size // tensor_parallel
    return Layout(
        rank=rank,
        world_size=world_size,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        device=device,
        tensor_group=parallel_state.get_tensor_model_parallel_group() if tensor_parallel > 1 else None,
        data_group=parallel_state.get_data_parallel_group() if data_parallel > 1 else None,
    )


def stop() -> None:
    """Takes the groups down; safe to call twice."""
    if not dist.is_initialized():
        return
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    cpu.remove()
