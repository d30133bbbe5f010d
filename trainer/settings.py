"""A trainer rank's settings, from the options that the controller passes on from the run file's `trainer`."""

from collections.abc import Mapping
from dataclasses import dataclass

START_TIMEOUT_S = 300.0  # ranks to meet
COLLECTIVE_TIMEOUT_S = 600.0  # any wait for another rank


@dataclass(frozen=True)
class TrainerSettings:
    """Named as the fields of TrainerConfig; dtype: empty for the run's model.dtype."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    recompute: str = "none"
    distributed_optimizer: bool = False
    async_checkpoint: bool = False
    dtype: str = ""
    start_timeout_s: float = START_TIMEOUT_S
    collective_timeout_s: float = COLLECTIVE_TIMEOUT_S

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> "TrainerSettings":
        """Reads what is given; the rest keeps its default."""
        return cls(
            tensor_parallel=int(options.get("tensor_parallel", "1")),
            pipeline_parallel=int(options.get("pipeline_parallel", "1")),
            context_parallel=int(options.get("context_parallel", "1")),
            expert_parallel=int(options.get("expert_parallel", "1")),
            recompute=options.get("recompute", "none"),
            distributed_optimizer=_flag(options.get("distributed_optimizer", "")),
            async_checkpoint=_flag(options.get("async_checkpoint", "")),
            dtype=options.get("dtype", ""),
            start_timeout_s=float(options.get("start_timeout_s", START_TIMEOUT_S)),
            collective_timeout_s=float(options.get("collective_timeout_s", COLLECTIVE_TIMEOUT_S)),
        )


def _flag(text: str) -> bool:
    return text.lower() in ("1", "true")
