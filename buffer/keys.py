"""Names of the keys of a run: the one description of what lies in Redis.

All keys of a run start with `{crescendo:<run_id>}:`. The braces put them into one hash slot, so a script may
touch several of them on a cluster, and runs that share a server never meet. An ACL user needs
`~{crescendo:*` and the commands that `check.py` tries.

Schema version 1. G is a group id, T a trajectory id, W a worker id, B a branch, V a weight version.

| key               | type   | what                                                                              |
|-------------------|--------|-----------------------------------------------------------------------------------|
| schema            | string | version of this schema, checked by connect                                        |
| fence             | hash   | epoch, counter: the newest fence seen; taker: the call that made the epoch;       |
|                   |        | repeats: repeated durable calls                                                   |
| replies           | hash   | caller -> (nonce, answer) of its last call, for a repeat after a lost answer      |
| lease_clock       | string | milliseconds on the controller's monotonic clock (docs/decisions/0004)            |
| sequence          | string | number of trajectories ever opened: age order                                     |
| counts            | hash   | `trajectories.<state>`, `groups.<state>` -> number                                |
| open              | hash   | `<iteration>:<state>` -> trajectories of open groups that were opened in iteration |
| group:G           | hash   | prompt_id, state, branch, iteration, stage, samples, sequence, scored, dropped,   |
|                   |        | settled_by (the trajectory that closed it), consumed_iteration, drop_reason,      |
|                   |        | archived (the file that holds its payload, which then is not here)               |
| prompt:G          | string | crescendo.v1.Prompt                                                               |
| groups:<state>    | zset   | group ids by sequence, those whose payload is here                                |
| consumed:B        | zset   | group ids by the iteration that consumed them on branch B                         |
| trajectories      | hash   | T -> MessagePack map: group, state, opened (its group's iteration), sequence,     |
|                   |        | tokens, spans, span_iteration (newest iteration it ran in), attempts, worker,     |
|                   |        | lease_ms, finish_reason, weights (newest version in it), drop_reason              |
| segments:T        | list   | crescendo.v1.Segment, in order                                                    |
| components:T      | string | crescendo.v1.ScoreResult                                                          |
| pending           | zset   | T by sequence: never run                                                          |
| parked            | zset   | T by sequence: may be continued now                                               |
| resting           | zset   | T by iteration: over budget in it, continued in a later one                       |
| leases            | zset   | T by expiry on the lease clock                                                    |
| held:W            | set    | T that worker W holds                                                             |
| finished          | zset   | T by sequence: to be scored                                                       |
| scoring           | zset   | T by sequence: handed out for scoring                                             |
| wake:claim        | list   | one element when there may be something to claim: a hint to blocked workers       |
| wake:score        | list   | the same for scoring                                                              |
| redo:B            | hash   | iteration -> crescendo.v1.TrainBatch, those above the commit                      |
| commit            | hash   | branch, iteration, manifest                                                       |
| branches          | hash   | B -> `<parent>:<iteration>` it started from; branch 0 has no entry                |
| archiver          | string | token of the newest archiver                                                      |
| version           | string | newest weight version issued                                                      |
| weights:V         | hash   | parent, branch, iteration, manifest (crescendo.v1.WeightManifest)                 |

The states of trajectories lie in one hash, so that a script reads and writes hundreds of them by one command
each. A trajectory that isn't scored or dropped belongs to an open group, always.
"""

import re
from dataclasses import dataclass

from crescendo.common.errors import RequestError
from crescendo.common.types import GroupId, TrajectoryId

SCHEMA_VERSION = 1

_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Keys:
    """Key names of one run."""

    run_id: str

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise RequestError(
                f"run id {self.run_id!r} can't be part of a key: it must match {_RUN_ID.pattern}.",
                field="run_id",
                fix="Choose a run name of letters, digits, dots, dashes and underscores.",
            )

    @property
    def prefix(self) -> str:
        return f"{{crescendo:{self.run_id}}}:"

    @property
    def fence(self) -> str:
        """The key that scripts get; they build the others from its prefix."""
        return self.prefix + "fence"

    @property
    def schema(self) -> str:
        return self.prefix + "schema"

    @property
    def counts(self) -> str:
        return self.prefix + "counts"

    @property
    def open(self) -> str:
        return self.prefix + "open"

    @property
    def commit(self) -> str:
        return self.prefix + "commit"

    @property
    def branches(self) -> str:
        return self.prefix + "branches"

    @property
    def version(self) -> str:
        return self.prefix + "version"

    @property
    def wake_claim(self) -> str:
        return self.prefix + "wake:claim"

    @property
    def wake_score(self) -> str:
        return self.prefix + "wake:score"

    def group(self, group: GroupId) -> str:
        return f"{self.prefix}group:{group}"

    def prompt(self, group: GroupId) -> str:
        return f"{self.prefix}prompt:{group}"

    def groups(self, state: str) -> str:
        return f"{self.prefix}groups:{state}"

    def segments(self, trajectory: TrajectoryId) -> str:
        return f"{self.prefix}segments:{trajectory}"

    def components(self, trajectory: TrajectoryId) -> str:
        return f"{self.prefix}components:{trajectory}"

    def redo(self, branch: int) -> str:
        return f"{self.prefix}redo:{branch}"

    def weights(self, version: int) -> str:
        return f"{self.prefix}weights:{version}"
