"""Which fault comes next, and when: a plan drawn from a seed, so that a campaign can be told by two numbers.

The instant and the kind depend on the seed alone. The victim is drawn by kind of process, not by process, from those
that live at that instant: a run has one Valkey and many scorers, and each kind should die as often.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crescendo.controller.chaos.targets import Target

KILL, STOP, PAUSE, DISCONNECT = "kill", "stop", "pause", "disconnect"
KINDS = {KILL: 0.55, STOP: 0.15, PAUSE: 0.15, DISCONNECT: 0.15}

OVERLAPS = 0.25  # share of faults that do not wait until the run has recovered from the one before
PAUSE_S = (0.5, 4.0)
CONNECTIONS = "connections"  # the victim of a disconnect: everybody's connections to the buffer


@dataclass(frozen=True)
class Fault:
    """A fault to come.

    wait_s: after the run has recovered, or after the last fault when overlaps; draw: picks the victim; seconds: how
    long a pause lasts. A stop lasts until somebody kills the process, or the campaign wakes it.
    """

    number: int
    kind: str
    wait_s: float
    overlaps: bool
    draw: float
    seconds: float

    def victim(self, targets: Sequence[Target], spared: Sequence[str]) -> Target | None:
        """Who is hit; None when nobody can be. spared: kinds of processes that are left alone."""
        kinds = sorted({target.kind for target in targets} - set(spared))
        if not kinds:
            return None
        place = self.draw * len(kinds)
        kind = kinds[int(place)]
        members = sorted((target for target in targets if target.kind == kind), key=lambda target: target.pid)
        return members[int((place % 1.0) * len(members))]


def plan(seed: int, num_faults: int, within_s: float = 8.0) -> Iterator[Fault]:
    """The faults of a campaign, in order; within_s: the longest wait before one."""
    draws = random.Random(seed)
    for number in range(num_faults):
        yield Fault(
            number=number,
            kind=draws.choices(list(KINDS), list(KINDS.values()))[0],
            wait_s=draws.uniform(0.0, within_s),
            overlaps=draws.random() < OVERLAPS,
            draw=draws.random(),
            seconds=draws.uniform(*PAUSE_S),
        )
