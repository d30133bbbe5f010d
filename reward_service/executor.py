"""The executor: ExecutorService over a worker pool. No token, no secret; reached by the reward process only.

Started by entry point `executor`. It holds model text as bytes and hands it to workers; `stop` lets running
calls end, then kills every process below it.
"""

import time

from crescendo.common.errors import RequestError
from crescendo.common.metrics import MetricsServer
from crescendo.common.rpc import Server, guarded, serve
from crescendo.common.rpc.status import Context
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc
from crescendo.reward_service.metrics import executor_families
from crescendo.reward_service.programs import ProgramGrading
from crescendo.reward_service.sandbox.options import Floor, SandboxOptions
from crescendo.reward_service.service_options import MIB, ServiceOptions, checked_deadline_s
from crescendo.reward_service.worker_status import worker_status
from crescendo.reward_service.workers import Pool, confine

SERVICE = "crescendo.v1.ExecutorService"


class ExecutorServicer(reward_pb2_grpc.ExecutorServiceServicer):
    """The calls of ExecutorService."""

    def __init__(self, worker_id: str, pool: Pool, programs: ProgramGrading, default_deadline_s: float) -> None:
        self._worker_id = worker_id
        self._pool = pool
        self._programs = programs
        self._default_deadline_s = default_deadline_s
        self._started_s = time.monotonic()

    @guarded
    async def Execute(self, request: reward_pb2.ExecuteRequest, context: Context) -> reward_pb2.ExecuteResponse:
        """Grades items; raises OverloadError when the queue is full."""
        deadline_s = checked_deadline_s(request.deadline_seconds, self._default_deadline_s)
        results = await self._programs.grade(request.items, deadline_s, fresh=request.fresh)
        return reward_pb2.ExecuteResponse(results=results)

    @guarded
    async def GetStatus(
        self, request: reward_pb2.GetExecutorStatusRequest, context: Context
    ) -> reward_pb2.GetExecutorStatusResponse:
        """Health of the pool, and which sandbox it is."""
        counters = self._pool.counters
        posture = self._programs.posture
        return reward_pb2.GetExecutorStatusResponse(
            worker=worker_status(self._worker_id, "executor", self._started_s, counters.progress_s),
            num_workers=self._pool.num_workers,
            num_killed=counters.num_killed,
            num_recycled=counters.num_recycled,
            boundary=posture.boundary if posture else confine.BOUNDARY,
            jail=posture.jail if posture else confine.JAIL,
        )


class RunningExecutor:
    """A started executor (see common.service.RunningService)."""

    def __init__(self, server: Server, pool: Pool, programs: ProgramGrading, metrics: MetricsServer) -> None:
        self._server = server
        self.pool = pool
        self.programs = programs
        self.metrics = metrics

    @property
    def address(self) -> str:
        """host:port."""
        return self._server.address

    async def stop(self, grace_s: float) -> None:
        """Running calls end within grace_s; then every worker is killed."""
        await self._server.stop(grace_s)
        await self.programs.close()
        await self.pool.close()
        self.metrics.close()


async def start(spec: ServiceSpec) -> RunningExecutor:
    """Starts the executor; raises ConfigError on bad options, RequestError if it is given a secret."""
    for name, value in (("token", spec.token), ("buffer_url", spec.buffer_url)):
        if value:
            raise RequestError(
                f"the executor was given a {name}; it reads model text and must hold no secret.",
                field=name,
                fix=f"Start it with an empty {name}.",
            )
    options = ServiceOptions.parse(spec.options)
    pool = Pool(
        num_workers=options.grading.workers,
        memory_bytes=options.grading.worker_memory_mib * MIB,
        recycle_after=options.grading.recycle_after,
        modules=options.preload,
        max_queued=options.listen.max_queued_items,
    )
    listen = options.listen
    sandbox = SandboxOptions(
        Floor.parse(listen.sandbox_floor),
        listen.sandbox_jail,
        listen.sandbox_programs,
        interpreter=listen.sandbox_interpreter,
    )
    programs = ProgramGrading(pool, sandbox)
    metrics = MetricsServer(lambda: executor_families(pool, programs))
    servicer = ExecutorServicer(spec.worker_id, pool, programs, options.grading.item_deadline_s)
    await pool.start()
    try:
        if options.runs_programs:
            await programs.open()
        metrics.start(options.listen.host, options.listen.metrics_port)
        server = await serve(
            lambda grpc_server: reward_pb2_grpc.add_ExecutorServiceServicer_to_server(servicer, grpc_server),
            [SERVICE],
            open_host=options.listen.host,
            port=options.listen.port,
        )
    except BaseException:
        metrics.close()
        await programs.close()
        await pool.close()
        raise
    return RunningExecutor(server, pool, programs, metrics)
