"""The hand-over of a device set, as a pure state machine: who may hold what, and when a proof holds.

    TRAIN --> OFFLOADING --> PUBLISHING --> ROLLOUT --> RECLAIMING --> TRAIN

    state        trainer holds              engines hold
    TRAIN        all                        -
    OFFLOADING   weights, moving the rest   -
    PUBLISHING   weights                    weights
    ROLLOUT      -                          weights and cache
    RECLAIMING   -                          what they still let go

A side allocates only after the other proved that it let go: by free device memory of at least what the next holder
declared, or, where cores are the shared device, by CPU time that stands still. A proof that fails is tried again by
the next stronger method. The controller (controller/loop/lease.py) drives this with what services report; nothing
here waits, calls or measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from crescendo.common.errors import InternalError

BUSY_SHARE: Final = 0.5  # of one core, between two readings
TICK_S: Final = 0.01  # CPU clocks count in hundredths of a second


class LeaseState(StrEnum):
    """Who holds the devices, or is about to."""

    TRAIN = "train"
    OFFLOADING = "offloading"
    PUBLISHING = "publishing"
    ROLLOUT = "rollout"
    RECLAIMING = "reclaiming"


class Holder(StrEnum):
    """The two sides."""

    TRAINER = "trainer"
    ENGINES = "engines"


class Share(StrEnum):
    """What a side holds of a device, smallest first."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    ALL = "all"


NEXT: Final[Mapping[LeaseState, LeaseState]] = {
    LeaseState.TRAIN: LeaseState.OFFLOADING,
    LeaseState.OFFLOADING: LeaseState.PUBLISHING,
    LeaseState.PUBLISHING: LeaseState.ROLLOUT,
    LeaseState.ROLLOUT: LeaseState.RECLAIMING,
    LeaseState.RECLAIMING: LeaseState.TRAIN,
}

MAY_HOLD: Final[Mapping[LeaseState, Mapping[Holder, Share]]] = {
    LeaseState.TRAIN: {Holder.TRAINER: Share.ALL, Holder.ENGINES: Share.NOTHING},
    LeaseState.OFFLOADING: {Holder.TRAINER: Share.ALL, Holder.ENGINES: Share.NOTHING},
    LeaseState.PUBLISHING: {Holder.TRAINER: Share.WEIGHTS, Holder.ENGINES: Share.WEIGHTS},
    LeaseState.ROLLOUT: {Holder.TRAINER: Share.NOTHING, Holder.ENGINES: Share.ALL},
    LeaseState.RECLAIMING: {Holder.TRAINER: Share.NOTHING, Holder.ENGINES: Share.ALL},
}

# Ways to let go, weakest and cheapest first.
METHODS: Final[Mapping[tuple[Holder, str], tuple[str, ...]]] = {
    (Holder.TRAINER, "cpu"): ("idle",),
    (Holder.TRAINER, "gpu"): ("offload",),
    (Holder.ENGINES, "cpu"): ("idle", "restart"),
    (Holder.ENGINES, "gpu"): ("sleep", "restart"),
}


@dataclass
class LeaseMachine:
    """Where the lease stands, and the seconds spent in each state. Times are the caller's monotonic clock."""

    since_s: float
    state: LeaseState = LeaseState.TRAIN
    seconds: dict[str, float] = field(default_factory=dict)

    def restart(self, now_s: float) -> None:
        """A controller took the run over: the trainer holds the devices."""
        self.state, self.since_s = LeaseState.TRAIN, now_s

    def move(self, to: LeaseState, now_s: float) -> bool:
        """Goes to the next state; returns whether that voids older fences. Any other order is a bug."""
        if NEXT[self.state] != to:
            raise InternalError(f"the lease cannot move from {self.state} to {to}.")
        self.seconds[self.state] = self.seconds.get(self.state, 0.0) + now_s - self.since_s
        self.state, self.since_s = to, now_s
        return to in (LeaseState.TRAIN, LeaseState.OFFLOADING, LeaseState.ROLLOUT)

    def may(self, holder: Holder, share: Share) -> bool:
        """Whether a side may take so much of the devices now."""
        order = list(Share)
        return order.index(share) <= order.index(MAY_HOLD[self.state][holder])

    def require(self, holder: Holder, share: Share) -> None:
        """Raises InternalError where `may` says no: the caller would make the other side run out of memory."""
        if not self.may(holder, share):
            raise InternalError(f"{holder} may not take {share} of the devices in {self.state}.")


@dataclass(frozen=True)
class Reading:
    """A released side at one time. free_bytes: of the device, least of several; None: no device memory to speak of."""

    at_s: float
    cpu_seconds: float
    free_bytes: int | None = None
    total_bytes: int = 0


class Verdict(StrEnum):
    """Of a proof so far."""

    WAIT = "wait"
    PROVEN = "proven"
    FAILED = "failed"


@dataclass
class Proof:
    """That a side let go. need_bytes: what the next holder declared; deadline_s: on the readings' clock."""

    need_bytes: int
    deadline_s: float
    _before: Reading | None = None

    def observe(self, now: Reading) -> Verdict:
        """Judges one more reading; readings come in order of time."""
        before, self._before = self._before, now
        if now.free_bytes is not None:
            proven = now.free_bytes >= self.need_bytes
        else:
            proven = before is not None and _stands_still(before, now)
        if proven:
            return Verdict.PROVEN
        return Verdict.FAILED if now.at_s >= self.deadline_s else Verdict.WAIT

    def shortfall(self, now: Reading) -> str:
        """What is wrong, for people."""
        if now.free_bytes is None:
            return "it still computes"
        return f"{now.free_bytes / 2**30:.2f} GiB are free, and {self.need_bytes / 2**30:.2f} are needed"


def _stands_still(before: Reading, now: Reading) -> bool:
    return now.cpu_seconds - before.cpu_seconds <= BUSY_SHARE * (now.at_s - before.at_s) + TICK_S


@dataclass
class Methods:
    """Which way to let go is taken: the cheapest whose measured leftover leaves enough for the next holder.

    leftovers: bytes that stayed taken after a release by that method, as last measured.
    """

    holder: Holder
    device: str
    leftovers: dict[str, int] = field(default_factory=dict)

    @property
    def ways(self) -> tuple[str, ...]:
        """All of them, weakest first."""
        return METHODS[self.holder, self.device]

    def choose(self, total_bytes: int, need_bytes: int) -> str:
        """The first that is unmeasured or left enough; the strongest when none did."""
        room = total_bytes - need_bytes
        for way in self.ways:
            if total_bytes <= 0 or self.leftovers.get(way, 0) <= room:
                return way
        return self.ways[-1]

    def stronger(self, than: str) -> str | None:
        """The next stronger one; None when there is none."""
        after = self.ways[self.ways.index(than) + 1 :]
        return after[0] if after else None

    def learn(self, method: str, reading: Reading) -> None:
        """Remembers what a release left behind."""
        if reading.free_bytes is not None:
            self.leftovers[method] = reading.total_bytes - reading.free_bytes
