"""Names of the keys of a run: the one description of what lies in Redis.

All keys of a run start with `{crescendo:<run_id>}:`. The braces put them into one hash slot, so a script may
touch several of them on a cluster, and runs that share a server never meet. What a login needs is in permissions.py.

Schema version 2. G is a group id, S a sample number, W a worker id, B a branch, V a weight version.

| key               | type   | what                                                                               |
|-------------------|--------|------------------------------------------------------------------------------------|
| schema            | string | version of this schema, checked by connect                                         |
| fence             | hash   | epoch, counter: the newest fence seen; taker: the call that made the epoch;        |
|                   |        | repeats: repeated durable calls                                                    |
| replies           | hash   | caller -> (nonce, answer) of its last call, for a repeat after a lost answer       |
| lease_clock       | string | milliseconds on the controller's monotonic clock (docs/decisions/0004)             |
| sequence          | string | number of trajectories ever opened: age order                                      |
| counts            | hash   | `trajectories.<state>`, `groups.<state>` -> number; bytes: of all payloads;        |
|                   |        | reserved: what open trajectories may still need                                    |
| open              | hash   | `<iteration>:<state>` -> trajectories of open groups that were opened in iteration |
| records           | hash   | G -> MessagePack map, see below                                                    |
| payload:G         | hash   | prompt: crescendo.v1.Prompt; `S:0`, `S:1`, ...: segments of sample S in order      |
|                   |        | (segments.py); `S:score`: crescendo.v1.ScoreResult                                 |
| groups:<state>    | zset   | G by sequence, those whose payload is here                                         |
| consumed:B        | zset   | G by the iteration that consumed it on branch B                                    |
| pending           | zset   | G by sequence: some sample has never run                                           |
| parked            | zset   | G by sequence: some sample may be continued now                                    |
| resting           | zset   | G by the first iteration in which a sample went over budget: continued later       |
| leases            | zset   | G by the first expiry of its leases on the lease clock                             |
| finished          | zset   | G by sequence: some sample is to be scored                                         |
| scoring           | zset   | G by sequence: some sample is handed out for scoring                               |
| wake:claim        | list   | one element when there may be something to claim: a hint to blocked workers        |
| wake:score        | list   | the same for scoring                                                               |
| redo:B            | hash   | iteration -> crescendo.v1.TrainBatch, those above the commit                       |
| commit            | hash   | branch, iteration, manifest                                                        |
| branches          | hash   | B -> `<parent>:<iteration>` it started from; branch 0 has no entry                 |
| archiver          | string | token of the newest archiver                                                       |
| version           | string | newest weight version issued                                                       |
| weights:V         | hash   | parent, branch, iteration, manifest (crescendo.v1.WeightManifest)                  |

A record is a group with its samples:

    state, prompt_id, branch, iteration (it was opened in), stage, samples, limit (most tokens of a response),
    sequence (of its first trajectory), settled_by (the sample that closed it), consumed_iteration, drop_reason,
    archived (the file that holds its payload, which then is not here), bytes (of its payload)
    workers, reasons: names, which columns refer to by number
    columns: a packed array [samples] each: state, tokens, parts (number of segments), spans, span_iteration (newest
        iteration it ran in), attempts, worker, lease_ms, expiry, finish (reason), weights (newest version), reason
        (of its drop)
    expiry, resting, reserved: derived from the columns, as the queues and counters are

The samples of a group mostly move together, so a script reads and writes one record for 16 trajectories; queues hold
groups. A trajectory that isn't scored or dropped belongs to an open group, always.
"""

import re
from dataclasses import dataclass

from crescendo.common.errors import RequestError
from crescendo.common.types import GroupId

SCHEMA_VERSION = 2

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
    def client_name(self) -> str:
        """What the connections of the run's processes are called on the server."""
        return f"crescendo:{self.run_id}"

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
    def lease_clock(self) -> str:
        return self.prefix + "lease_clock"

    @property
    def version(self) -> str:
        return self.prefix + "version"

    @property
    def wake_claim(self) -> str:
        return self.prefix + "wake:claim"

    @property
    def wake_score(self) -> str:
        return self.prefix + "wake:score"

    @property
    def records(self) -> str:
        return self.prefix + "records"

    def payload(self, group: GroupId) -> str:
        return f"{self.prefix}payload:{group}"

    def groups(self, state: str) -> str:
        return f"{self.prefix}groups:{state}"

    def redo(self, branch: int) -> str:
        return f"{self.prefix}redo:{branch}"

    def weights(self, version: int) -> str:
        return f"{self.prefix}weights:{version}"
