"""Worker processes: a zygote that forks them, the confinement they put on, and the pool that feeds and kills them.

    Pool (executor process) --SEQPACKET--> zygote --fork--> worker, worker, ...
      └──────────────── one socket a worker: WorkerTask ->, <- WorkerAnswer ──┘

The pool measures each item's time and kills the worker's process group at the deadline. The zygote never
sees model text; it forks, and collects exit codes when the pool says so, so that a process id the pool holds
is never reused before the pool has let go of it. All of them end with the executor.
"""

from crescendo.reward_service.workers.pool import Pool, PoolCounters
from crescendo.reward_service.workers.tasks import Step

__all__ = ["Pool", "PoolCounters", "Step"]
