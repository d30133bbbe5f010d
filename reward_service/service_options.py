"""What the two services read from ServiceSpec.options: the run file's `reward_service` block, and where to listen.

Both take the same options, so that the controller passes one set to both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from crescendo.common.config.schema import RewardServiceConfig
from crescendo.common.errors import ConfigError, RequestError
from crescendo.reward_service.scorers import SANDBOX_SCORERS, WORKER_SCORERS
from crescendo.reward_service.typed_options import option, parse_options

MIB = 1 << 20
MAX_DEADLINE_S = 3600.0


@dataclass(frozen=True)
class ListenOptions:
    """Options besides those of RewardServiceConfig."""

    host: str = option("127.0.0.1", "address that the executor and the metrics listen on")
    port: int = option(0, "TCP port; 0 picks a free one", at_least=0, at_most=65535)
    metrics_port: int = option(-1, "TCP port of Prometheus metrics; 0 a free one, -1 none", at_least=-1, at_most=65535)
    drain_s: float = option(30.0, "at the end, wait so long for running calls", unit="s", at_least=0)
    max_queued_items: int = option(65536, "items waiting or at work, beyond which calls are refused", at_least=1)
    max_queued_mib: int = option(1024, "bytes of such items", unit="MiB", at_least=1)
    identity_share: float = option(0.5, "of what may be queued, that one caller may hold", above=0, at_most=1)
    max_response_mib: int = option(16, "a longer response is refused, item by item", unit="MiB", at_least=1)
    reward_models: str = option("", "rewards.models of the run file as JSON; for the reward process only")
    sandbox_floor: str = option("shared-kernel/landlock", "weakest boundary and jail in which programs run")
    sandbox_jail: str = option("auto", "jail of programs; auto is the strongest that works")
    sandbox_programs: int = option(0, "programs at once; 0 is one a core", at_least=0)
    sandbox_interpreter: str = option("", "Python that programs run in; empty is the one beneath this environment")
    scorers: str = option("", "scorers that will be used, comma-separated, to load their libraries ahead; empty: all")


@dataclass(frozen=True)
class ServiceOptions:
    """All options of a service."""

    grading: RewardServiceConfig
    listen: ListenOptions

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "ServiceOptions":
        """Reads ServiceSpec.options; raises ConfigError naming the option that is wrong."""
        of_listen = {field.name for field in fields(ListenOptions)}
        listen = {name: text for name, text in given.items() if name in of_listen}
        grading = {name: text for name, text in given.items() if name not in of_listen}
        return cls(
            grading=parse_options(RewardServiceConfig, grading, "reward_service", ConfigError),
            listen=parse_options(ListenOptions, listen, "reward_service", ConfigError),
        )

    @property
    def runs_programs(self) -> bool:
        """Whether a scorer that will be used has programs run; not known, and so no, where none is named."""
        wanted = {name.strip() for name in self.listen.scorers.split(",")}
        return not wanted.isdisjoint(SANDBOX_SCORERS)

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that the scorers in use need."""
        wanted = [name.strip() for name in self.listen.scorers.split(",") if name.strip()]
        return tuple(
            dict.fromkeys(
                module
                for name, scorer in WORKER_SCORERS.items()
                if not wanted or name in wanted
                for module in scorer.preload
            )
        )


def checked_deadline_s(given_s: float, default_s: float) -> float:
    """The wall-clock limit of an item: what the request gives, else the default. Raises RequestError."""
    deadline_s = given_s or default_s
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise RequestError(
            f"deadline_seconds is {deadline_s}; it must be above 0 and at most {MAX_DEADLINE_S:g}.",
            field="deadline_seconds",
        )
    return deadline_s
