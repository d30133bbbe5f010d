"""The warm sandbox: programs in fresh jails that a zygote forked, several at once.

    run ->  a free place  ->  a child in its jail (one may wait ready)  ->  the program and its streams go in
        ->  a limit is passed: killed                                   ->  it is gone: streams, status, Outcome

A child serves one program. Children that wait ready hide the time that entering a jail takes; they hold nothing.
`cold=True` starts a zygote for each program and ends it after: the same jail, an interpreter nobody used before.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass

from crescendo.common.errors import CrescendoError, DeadlineError, OverloadError, WorkerLostError
from crescendo.reward_service.sandbox.cgroups import CgroupPool, Slot
from crescendo.reward_service.sandbox.inside import packets
from crescendo.reward_service.sandbox.profiles import COMMON_IMPORTS, PROFILES
from crescendo.reward_service.sandbox.protocol import Ending, Jail, Limits, Outcome, Posture, Program
from crescendo.reward_service.sandbox.run import Run, read_only_folder
from crescendo.reward_service.sandbox.zygote_process import Child, ZygoteProcess, own_interpreter

log = logging.getLogger(__name__)

START_S = 30.0
RETRY_S = 0.5
# The uid that root's children get. Nothing else runs under it, and it owns no file.
CANDIDATE_UID = 64200
_DEFAULT_SHAPE = packets.ForkRequest(Limits().files_bytes, Limits().num_files)


@dataclass(frozen=True)
class WarmOptions:
    """What a warm sandbox is made of."""

    jail: Jail
    interpreter: str = ""  # empty: the one beneath this environment
    concurrency: int = 2  # programs at once
    num_ready: int = 2  # children that wait in their jails
    is_cold: bool = False


@dataclass
class Inmate:
    """A child, the zygote that made it, and the cgroup that it joined."""

    zygote: ZygoteProcess
    child: Child
    slot: Slot | None
    shape: packets.ForkRequest


class WarmSandbox:
    """`await WarmSandbox(options, posture, cgroups).start()`, then `run`, then `close` (see protocol.Sandbox)."""

    def __init__(self, options: WarmOptions, posture: Posture, cgroups: CgroupPool | None) -> None:
        self._options = options
        self._posture = posture
        self._cgroups = cgroups
        self._places = asyncio.Semaphore(options.concurrency)
        self._ready: deque[Inmate] = deque()
        self._zygote: ZygoteProcess | None = None
        self._zygote_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_coming = 0  # children on their way to `_ready`
        self._is_closing = False
        self.num_started = 0

    @property
    def posture(self) -> Posture:
        """What programs run in."""
        return self._posture

    @property
    def zygote_pid(self) -> int:
        """Process id of what stands above all programs, for tests; 0 if there is none."""
        return self._zygote.pid if self._zygote else 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing is being made or buried."""
        return not self._tasks

    async def start(self) -> "WarmSandbox":
        """Starts the zygote; raises WorkerStartError naming what the machine refuses."""
        if not self._options.is_cold:
            await self._living_zygote()
            self._refill()
        return self

    async def close(self) -> None:
        """Kills what runs, and ends everything the sandbox started."""
        self._is_closing = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._ready:
            await self._bury(self._ready.popleft())
        if self._zygote is not None:
            await self._zygote.close()
        if self._cgroups is not None:
            self._cgroups.close()

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """See protocol.Sandbox.run."""
        program.check()
        if program.profile not in PROFILES:
            return self._unsupported(f"there is no runtime profile {program.profile!r}")
        if PROFILES[program.profile].entry not in program.files:
            return self._unsupported(f"profile {program.profile} needs a file {PROFILES[program.profile].entry}")
        has_place = False
        try:
            async with asyncio.timeout(deadline_s):
                async with self._places:
                    has_place = True
                    return await self._run_alone(program)
        except TimeoutError:
            if has_place:
                raise DeadlineError(f"the program had not ended when its caller's {deadline_s:g} s were over") from None
            raise OverloadError(
                f"no place in the sandbox became free within {deadline_s:g} s.", retry_after_s=RETRY_S
            ) from None

    async def _run_alone(self, program: Program) -> Outcome:
        limits = program.limits
        inmate = await self._inmate(packets.ForkRequest(limits.files_bytes, limits.num_files))
        self.num_started += 1
        with contextlib.ExitStack() as folders:
            try:
                folder = ""
                if self._posture.jail is Jail.LANDLOCK:
                    folder = folders.enter_context(read_only_folder(program.files))
                return await Run(inmate.child, inmate.slot, program, self._posture).outcome(folder)
            finally:
                # Shielded: a cancelled caller must not leave a process behind.
                await asyncio.shield(self._spawn(self._bury(inmate)))

    # Children.

    async def _inmate(self, shape: packets.ForkRequest) -> Inmate:
        if self._options.is_cold:
            zygote = await self._new_zygote()
            try:
                return await self._admit(zygote, shape)
            except BaseException:
                await zygote.close()
                raise
        while self._ready and self._ready[0].shape == shape:
            inmate = self._ready.popleft()
            self._refill()
            if not inmate.child.ended.done():
                return inmate
            await self._bury(inmate)
        return await self._admit(await self._living_zygote(), shape)

    async def _admit(self, zygote: ZygoteProcess, shape: packets.ForkRequest) -> Inmate:
        slot = self._cgroups.take() if self._cgroups else None
        try:
            child = await zygote.fork(shape, slot.descriptors if slot else ())
        except BaseException:
            if slot and self._cgroups:
                self._cgroups.give_back(slot)
            raise
        return Inmate(zygote, child, slot, shape)

    def _refill(self) -> None:
        while not self._is_closing and len(self._ready) + self._num_coming < self._options.num_ready:
            self._num_coming += 1
            self._spawn(self._add_ready())

    async def _add_ready(self) -> None:
        try:
            inmate = await self._admit(await self._living_zygote(), _DEFAULT_SHAPE)
        except (CrescendoError, OSError) as error:
            log.warning("no child could be kept ready: %s", error)
            return
        finally:
            self._num_coming -= 1
        if self._is_closing:
            await self._bury(inmate)
        else:
            self._ready.append(inmate)

    async def _bury(self, inmate: Inmate) -> None:
        """Returns when nothing of the child is left and its cgroup is clean or set aside."""
        inmate.child.kill()
        try:
            await inmate.child.wait_gone()
        except WorkerLostError as error:
            log.error("%s", error.message)
            await inmate.zygote.close()  # its end ends every child, the stuck one too
        inmate.child.close()
        if inmate.slot and self._cgroups:
            self._cgroups.give_back(inmate.slot)
        if self._options.is_cold:
            await inmate.zygote.close()

    async def _living_zygote(self) -> ZygoteProcess:
        async with self._zygote_lock:
            if self._zygote is not None and self._zygote.is_lost:
                log.error("the sandbox's zygote %d is lost; a new one is started", self._zygote.pid)
                await self._zygote.close()
                self._zygote = None
            if self._zygote is None:
                self._zygote = await self._new_zygote()
            return self._zygote

    async def _new_zygote(self) -> ZygoteProcess:
        interpreter = self._options.interpreter or own_interpreter()
        return await ZygoteProcess.start(self._options.jail, interpreter, CANDIDATE_UID, COMMON_IMPORTS, START_S)

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _unsupported(self, reason: str) -> Outcome:
        posture = self._posture
        return Outcome(Ending.UNSUPPORTED, boundary=posture.boundary, jail=posture.jail, reason=reason)
