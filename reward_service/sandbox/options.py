"""What a sandbox is opened with: the run file's `reward_service.sandbox` block, checked."""

import os
from dataclasses import dataclass

from crescendo.common.errors import ConfigError
from crescendo.reward_service.sandbox.protocol import Boundary, Jail

AUTO = "auto"
_BOUNDARIES, _JAILS = list(Boundary), list(Jail)


@dataclass(frozen=True)
class Floor:
    """The weakest boundary and the weakest jail in which programs may run."""

    boundary: Boundary = Boundary.SHARED_KERNEL
    jail: Jail = Jail.LANDLOCK

    @classmethod
    def parse(cls, text: str) -> "Floor":
        """From `boundary/jail`; raises ConfigError."""
        boundary, _, jail = text.partition("/")
        jails = [name for name in _JAILS if name is not Jail.PROCESS]
        if boundary not in _BOUNDARIES or jail not in jails:
            raise ConfigError(
                f"sandbox.floor is {text!r}; it must be a boundary and a jail.",
                field="sandbox.floor",
                fix=f"Write one of {', '.join(_BOUNDARIES)}, a slash, and one of {', '.join(jails)}.",
            )
        return cls(Boundary(boundary), Jail(jail))

    def is_met_by(self, boundary: Boundary, jail: Jail) -> bool:
        """Whether both are at least as strong."""
        return _BOUNDARIES.index(boundary) >= _BOUNDARIES.index(self.boundary) and (
            _JAILS.index(jail) >= _JAILS.index(self.jail)
        )

    def __str__(self) -> str:
        return f"{self.boundary}/{self.jail}"


@dataclass(frozen=True)
class SandboxOptions:
    """floor: below it no program runs; jail: `auto` for the strongest that works here, or the one to use; programs: at
    once, 0 for one a core; is_cold: a new interpreter for each; interpreter: path, empty for our own."""

    floor: Floor = Floor()
    jail: str = AUTO
    programs: int = 0
    is_cold: bool = False
    interpreter: str = ""

    @property
    def concurrency(self) -> int:
        """Programs at once."""
        return self.programs or len(os.sched_getaffinity(0))
