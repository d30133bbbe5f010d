"""What a service process is given, and what it gives back.

The controller starts services by entry point (group `crescendo.services`), never by import: the entry
point is an async function `start(spec: ServiceSpec) -> RunningService`. Ray actors and plain processes
call it alike.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Protocol

ENTRY_POINT_GROUP = "crescendo.services"


@dataclass(frozen=True)
class ServiceSpec:
    """Everything a service needs to start. Travels as JSON.

    address: of another service it depends on (the executor's, for `reward`); rendezvous: host:port of the
    trainer gang's rank 0; threads: compute threads, 0 for the machine's; incarnation: how many processes of
    this name the controller started before this one; store: URL of the run in its checkpoint store, empty: none, and
    store_credentials: the folder of its keys, empty: the environment.
    """

    role: str
    worker_id: str
    run_folder: str
    run_id: str
    token: str
    buffer_url: str = ""
    address: str = ""
    rank: int = 0
    world_size: int = 1
    rendezvous: str = ""
    threads: int = 0
    device: str = "cpu"
    model_path: str = ""
    options: dict[str, str] = field(default_factory=dict)
    incarnation: int = 0
    store: str = ""
    store_credentials: str = ""

    @property
    def holder(self) -> str:
        """The name that leases are held under: a process that was replaced cannot pass for its successor."""
        return f"{self.worker_id}.{self.incarnation}"

    def to_json(self) -> str:
        """The spec as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServiceSpec":
        """The spec that `to_json` wrote."""
        return cls(**json.loads(text))


class RunningService(Protocol):
    """A started service."""

    @property
    def address(self) -> str:
        """host:port of its gRPC server; empty for a rank that does not speak."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Drains and ends it."""
        ...
