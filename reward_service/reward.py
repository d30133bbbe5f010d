"""The reward process: RewardService. Identities, quotas, retries, group-wise rewards; model text is opaque bytes.

Started by entry point `reward` with the executors' addresses in spec.address (see executors.py). `stop` refuses new
calls, lets running ones end and waits for second gradings.
"""

import time

from crescendo.common.errors import ConfigError, RequestError
from crescendo.common.metrics import MetricsServer
from crescendo.common.rpc import Server, guarded, serve, to_detail
from crescendo.common.rpc.identity import IdentityFiles
from crescendo.common.rpc.status import Context
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc
from crescendo.reward_service.admission import Admission, identity_of
from crescendo.reward_service.dispatch import Dispatcher, worst_case_s
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.metrics import model_families, reward_families
from crescendo.reward_service.reward_models import ModelScoring, RewardModels, parse_models
from crescendo.reward_service.scorers import (
    GROUP_SCORERS,
    REMOTE_SCORERS,
    WORKER_SCORERS,
    check_chain,
    resolve_group_chain,
)
from crescendo.reward_service.scorers.groups import score_group
from crescendo.reward_service.service_options import MIB, ServiceOptions, checked_deadline_s
from crescendo.reward_service.worker_status import worker_status

SERVICE = "crescendo.v1.RewardService"
CALLERS = frozenset({"controller", "probe"})
MAX_KNOWN_CHAINS = 1024


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """The calls of RewardService."""

    def __init__(
        self, worker_id: str, dispatcher: Dispatcher, options: ServiceOptions, models: RewardModels | None = None
    ) -> None:
        self._worker_id = worker_id
        self._dispatcher = dispatcher
        self._models = models or RewardModels({})
        self._scoring = ModelScoring(dispatcher, self._models)
        self._options = options
        self._known_chains: set[bytes] = set()
        listen = options.listen
        self.admission = Admission(listen.max_queued_items, listen.max_queued_mib * MIB, listen.identity_share)
        self._started_s = time.monotonic()

    @guarded
    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        """Scores items; raises RequestError on a wrong chain, OverloadError with a delay when full or over quota."""
        deadline_s = checked_deadline_s(request.deadline_seconds, self._options.grading.item_deadline_s)
        for item in request.items:
            self._check_chain(item)
        results = {i: refusal for i, item in enumerate(request.items) if (refusal := self._refusal(item))}
        accepted = [(i, item) for i, item in enumerate(request.items) if i not in results]
        items = [item for _, item in accepted]
        with self.admission.hold(identity_of(context), items):
            timeout_s = self._timeout_s(context, len(items), deadline_s)
            scored = await self._scoring.score(items, deadline_s, timeout_s)
        results.update({i: result for (i, _), result in zip(accepted, scored, strict=True)})
        return reward_pb2.ScoreResponse(results=[results[i] for i in range(len(request.items))])

    @guarded
    async def ScoreGroups(
        self, request: reward_pb2.ScoreGroupsRequest, context: Context
    ) -> reward_pb2.ScoreGroupsResponse:
        """Applies group-wise scorers; raises RequestError on a wrong chain."""
        chain = resolve_group_chain(request.chain)
        weights = [spec.weight for spec in request.chain]
        results = [
            reward_pb2.ScoreResult(item_id=member.item_id, components=components)
            for group in request.groups
            for member, components in zip(group.members, score_group(group.members, chain, weights), strict=True)
        ]
        return reward_pb2.ScoreGroupsResponse(results=results)

    @guarded
    async def GetStatus(
        self, request: reward_pb2.GetRewardStatusRequest, context: Context
    ) -> reward_pb2.GetRewardStatusResponse:
        """Counts since the start, and the scorers by name."""
        counters = self._dispatcher.counters
        return reward_pb2.GetRewardStatusResponse(
            worker=worker_status(self._worker_id, "reward", self._started_s, self.admission.progress_s),
            scorers=sorted({*WORKER_SCORERS, *REMOTE_SCORERS, *GROUP_SCORERS}),
            num_scored=counters.num_scored,
            num_faults=counters.num_faults,
            num_regraded=counters.num_regraded,
            num_disagreements=counters.num_disagreements,
        )

    def _check_chain(self, item: reward_pb2.ScoreItem) -> None:
        key = b"\0".join(spec.SerializeToString(deterministic=True) for spec in item.chain)
        if key in self._known_chains:
            return
        check_chain(item.chain)
        self._scoring.check(item.chain)
        if len(self._known_chains) < MAX_KNOWN_CHAINS:
            self._known_chains.add(key)

    def _refusal(self, item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult | None:
        limit = self._options.listen.max_response_mib * MIB
        size = len(item.response)
        if size <= limit:
            return None
        error = RequestError(
            f"the response of item {item.item_id} has {size} bytes; the limit is {limit}.", field="response"
        )
        return reward_pb2.ScoreResult(item_id=item.item_id, fault=to_detail(error))

    def _timeout_s(self, context: Context, num_items: int, deadline_s: float) -> float:
        longest_s = worst_case_s(num_items, deadline_s, self._options.grading.attempts) + self._models.worst_case_s
        remaining_s = context.time_remaining()
        return longest_s if remaining_s is None else min(longest_s, remaining_s)


class RunningReward:
    """A started reward process (see common.service.RunningService)."""

    def __init__(
        self,
        server: Server,
        dispatcher: Dispatcher,
        executors: Executors,
        metrics: MetricsServer,
        models: RewardModels,
    ) -> None:
        self._server = server
        self._dispatcher = dispatcher
        self._executors = executors
        self._models = models
        self.metrics = metrics

    @property
    def address(self) -> str:
        """host:port."""
        return self._server.address

    async def stop(self, grace_s: float) -> None:
        """Running calls end within grace_s, then second gradings in what is left of it."""
        started_s = time.monotonic()
        await self._server.stop(grace_s)
        await self._dispatcher.close(grace_s - (time.monotonic() - started_s))
        await self._models.close()
        await self._executors.close()
        self.metrics.close()


async def start(spec: ServiceSpec) -> RunningReward:
    """Starts the reward process; raises ConfigError on bad options or without token or executor address.

    With an identity (common/rpc/identity.py) callers show certificates, and no token is needed.
    """
    has_identity = IdentityFiles.from_environment() is not None
    for name, value in (("token", spec.token), ("address", spec.address)):
        if not value and not (name == "token" and has_identity):
            raise ConfigError(
                f"the reward service was started without {name}.",
                field=name,
                fix="Give the run's token, and the executors' host:port, separated by commas, as address.",
            )
    options = ServiceOptions.parse(spec.options)
    models = RewardModels.open(parse_models(options.listen.reward_models))
    executors = await Executors.connect(spec.address)
    dispatcher = Dispatcher(executors, options.grading.attempts, options.grading.regrade_share)
    servicer = RewardServicer(spec.worker_id, dispatcher, options, models)
    metrics = MetricsServer(
        lambda: (*reward_families(dispatcher.counters, servicer.admission, executors), *model_families(models.counters))
    )
    try:
        metrics.start(options.listen.host, options.listen.metrics_port)
        server = await serve(
            lambda grpc_server: reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, grpc_server),
            [SERVICE],
            token=spec.token,
            roles=CALLERS,
            port=options.listen.port,
        )
    except BaseException:
        metrics.close()
        await models.close()
        await executors.close()
        raise
    return RunningReward(server, dispatcher, executors, metrics, models)
