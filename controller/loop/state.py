"""What a run must remember between iterations: the part of a commit that is not weights."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunState:
    """Counters and the states of scheduler and curriculum, as JSON-ready values.

    iteration: the last one that is part of the weights; 0 before the first; num_engines: as people set it, else 0.
    """

    step_index: int = 0
    sft_steps: int = 0
    iteration: int = 0
    branch: int = 0
    weight_version: int = 0
    optimizer_step: int = 0
    num_engines: int = 0
    accuracy_sft: float | None = None
    accuracy_final: float | None = None
    stages: dict[str, Any] = field(default_factory=dict)
    curriculum: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "RunState":
        """What `to_dict` gave."""
        return cls(**stored)

    def worst(self, name: str, value: float) -> None:
        """Keeps the largest value of a check."""
        self.checks[name] = max(value, self.checks.get(name, 0.0))
