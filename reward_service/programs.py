"""Items whose scorers have programs run: worker, sandbox, worker, ... until every link has its component.

    worker    reads the response, says which programs it needs        (confined, reads model text)
    executor  runs them, and looks into neither programs nor outcomes (this file)
    worker    reads the outcomes: a component, or more programs

A program that could not be run is a fault of the service, never a score; one that breaks the sandbox's rules, or a
link that never comes to an end, gets its lowest value. The sandbox is opened when it is first needed.
"""

import asyncio
from collections.abc import Sequence

from crescendo.common.errors import CrescendoError, DeadlineError, RequestError, WorkerLostError
from crescendo.common.rpc import to_detail
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.judge.messages import outcome_message, read_program
from crescendo.reward_service.judge.together import together
from crescendo.reward_service.sandbox.opening import Opened, open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import MIB, Ending, Limits, Posture
from crescendo.reward_service.scorers import SANDBOX_SCORERS
from crescendo.reward_service.workers import Pool, Step

# No program gets more, whatever a worker asks for: it has read model text.
MOST = Limits(
    wall_s=120.0,
    cpu_s=120.0,
    memory_bytes=4096 * MIB,
    output_bytes=16 * MIB,
    files_bytes=64 * MIB,
    num_files=4096,
    file_bytes=64 * MIB,
    num_processes=64,
)
MAX_OUTCOMES_BYTES = 40 * MIB  # of a link; a worker takes 64 MiB, the item among them
MARGIN_S = 120.0


class ProgramGrading:
    """`grade` as the pool's, for chains with and without programs; `close` at the end.

    deadline_s of `grade` bounds each step of an item in a worker. Its programs have limits of their own, and all
    programs of a call together MARGIN_S and deadline_s an item, waiting for a place included.
    """

    def __init__(self, pool: Pool, options: SandboxOptions) -> None:
        self._pool = pool
        self._options = options
        self._opened: Opened | None = None
        self._opening = asyncio.Lock()
        self._places = asyncio.Semaphore(2 * options.concurrency)

    @property
    def posture(self) -> Posture | None:
        """What programs run in; None before the first one."""
        return self._opened.sandbox.posture if self._opened else None

    async def open(self) -> Opened:
        """Opens the sandbox, unless it is open."""
        async with self._opening:
            if self._opened is None:
                self._opened = await open_sandbox(self._options)
            return self._opened

    async def close(self) -> None:
        """Ends the sandbox and everything in it."""
        if self._opened is not None:
            await self._opened.sandbox.close()

    async def grade(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, *, fresh: bool = False
    ) -> list[reward_pb2.ScoreResult]:
        """Results in order; raises OverloadError when the pool's queue is full."""
        steps = await self._pool.take([(item, ()) for item in items], deadline_s, fresh=fresh)
        if not any(step.needed for step in steps):
            return [step.result for step in steps]
        ends_s = asyncio.get_running_loop().time() + MARGIN_S + len(items) * deadline_s
        return await together(
            self._finish(item, step, deadline_s, ends_s, fresh=fresh) for item, step in zip(items, steps, strict=True)
        )

    async def _finish(
        self, item: reward_pb2.ScoreItem, step: Step, deadline_s: float, ends_s: float, *, fresh: bool
    ) -> reward_pb2.ScoreResult:
        result, needed = step.result, step.needed
        if not needed:
            return result
        ended: dict[int, reward_pb2.LinkRuns] = {}
        try:
            async with self._places:
                for _ in range(max(scorer.max_steps for scorer in SANDBOX_SCORERS.values())):
                    for runs in needed:
                        ended.setdefault(runs.link, reward_pb2.LinkRuns(link=runs.link))
                    needed = [runs for runs in needed if await self._run(item, runs, ended[runs.link], result, ends_s)]
                    if not needed:
                        return result
                    asked = [(item, [ended[runs.link] for runs in needed])]
                    (step,) = await self._pool.take(asked, deadline_s, fresh=fresh)
                    if step.result.HasField("fault"):
                        return step.result
                    for runs in needed:
                        result.components[runs.link].CopyFrom(step.result.components[runs.link])
                    result.seconds += step.result.seconds
                    needed = step.needed
        except CrescendoError as error:
            return reward_pb2.ScoreResult(item_id=item.item_id, fault=to_detail(error))
        for runs in needed:
            _condemn(item, runs.link, result, "its programs never came to an end")
        return result

    async def _run(
        self,
        item: reward_pb2.ScoreItem,
        runs: reward_pb2.LinkRuns,
        ended: reward_pb2.LinkRuns,
        result: reward_pb2.ScoreResult,
        ends_s: float,
    ) -> bool:
        """Runs a link's programs; False when they break the rules and the link has its component."""
        sandbox = (await self.open()).sandbox
        remaining_s = ends_s - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise DeadlineError(f"the programs of item {item.item_id} had no time left.", field="deadline_seconds")
        try:
            programs = [read_program(message, MOST) for message in runs.programs]
        except RequestError as error:
            _condemn(item, runs.link, result, error.message)
            return False
        outcomes = await together(sandbox.run(program, remaining_s) for program in programs)
        for outcome in outcomes:
            if outcome.ending is Ending.SANDBOX_ERROR:
                raise WorkerLostError(f"a program of item {item.item_id} could not be run: {outcome.reason}")
        ended.outcomes.extend(outcome_message(outcome) for outcome in outcomes)
        if ended.ByteSize() > MAX_OUTCOMES_BYTES:
            _condemn(item, runs.link, result, "its programs wrote too much")
            return False
        if outcomes:
            result.boundary, result.jail = outcomes[-1].boundary, outcomes[-1].jail
        return True


def _condemn(item: reward_pb2.ScoreItem, link: int, result: reward_pb2.ScoreResult, detail: str) -> None:
    """The link's lowest value."""
    spec = item.chain[link]
    component = common_pb2.RewardComponent(
        name=spec.name,
        raw=SANDBOX_SCORERS[spec.name].low,
        weight=spec.weight,
        verdict=common_pb2.VERDICT_SANDBOX_ERROR,
        detail=detail[:256],
    )
    result.components[link].CopyFrom(component)
