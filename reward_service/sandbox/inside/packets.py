"""What the executor and a zygote say to each other: packets of JSON, with descriptors attached.

    executor -> zygote   ForkRequest; descriptors: the child's control socket, then cgroup files for it to join
    zygote -> executor   {"ready"}; {"forked": pid} with a pidfd; {"failed": why}; {"ended": pid, "status", ...}

The zygote never sees a program: that goes from the executor to the forked child (wire.py).
"""

import json
from dataclasses import asdict, dataclass

MAX_PACKET = 4096


@dataclass(frozen=True)
class ForkRequest:
    """The shape of a fresh jail: what cannot be changed once it is entered."""

    files_bytes: int
    num_files: int

    def encode(self) -> bytes:
        """As a packet."""
        return json.dumps(asdict(self)).encode()
