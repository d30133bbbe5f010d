"""Opens the strongest sandbox that works here, and says why the others do not.

    runsc        a `runsc` program that can start a container as this user
    namespaces   user namespaces and mounts, which default container profiles forbid
    landlock     Landlock with ABI 6 (Linux 6.12); a pod under Pod Security `restricted` has it

What is opened has run a probe. Below the floor there is a sandbox too: it answers `unsupported` and runs nothing.
"""

import logging
from dataclasses import dataclass, field

from crescendo.common.errors import CrescendoError, WorkerStartError
from crescendo.reward_service.sandbox.boundary import KernelFacts, boundary_of
from crescendo.reward_service.sandbox.cgroups import CgroupPool
from crescendo.reward_service.sandbox.cold import ColdSandbox, Maker
from crescendo.reward_service.sandbox.options import AUTO, SandboxOptions
from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Outcome, Posture, Program, Sandbox
from crescendo.reward_service.sandbox.runsc import Runsc
from crescendo.reward_service.sandbox.warm import WarmOptions, WarmSandbox
from crescendo.reward_service.sandbox.zygote_process import own_interpreter

log = logging.getLogger(__name__)

STRONGEST_FIRST = (Jail.RUNSC, Jail.NAMESPACES, Jail.LANDLOCK)
PROBE_S = 20.0
_PROBE = b"print(6 * 7)"


@dataclass
class Closed:
    """A sandbox in which nothing runs, because nothing strong enough works here."""

    posture: Posture
    reason: str

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """`unsupported`, with the reason."""
        program.check()
        posture = self.posture
        return Outcome(Ending.UNSUPPORTED, boundary=posture.boundary, jail=posture.jail, reason=self.reason)

    async def close(self) -> None:
        """Nothing to end."""


@dataclass
class Opened:
    """A sandbox, the proof of its boundary, and for each stronger jail why it is not that one."""

    sandbox: Sandbox
    proof: str
    refusals: dict[Jail, str] = field(default_factory=dict)


async def open_sandbox(options: SandboxOptions) -> Opened:
    """Opens the strongest jail at or above the floor; never raises for want of one (see Closed)."""
    boundary, proof = boundary_of(KernelFacts.read())
    refusals: dict[Jail, str] = {}
    wanted = STRONGEST_FIRST if options.jail == AUTO else (Jail(options.jail),)
    for jail in wanted:
        try:
            sandbox, jail_proof = await _open(jail, boundary, options)
        except CrescendoError as error:
            refusals[jail] = error.message
            continue
        posture = sandbox.posture
        if options.floor.is_met_by(posture.boundary, posture.jail):
            log.info("sandbox: %s on %s (%s)", posture.jail, posture.boundary, jail_proof or proof)
            return Opened(sandbox, jail_proof or proof, refusals)
        await sandbox.close()
        refusals[jail] = f"{posture.boundary}/{posture.jail} is below the floor {options.floor}"
    reason = "; ".join(f"{jail}: {why}" for jail, why in refusals.items())
    log.warning("no program will run: %s", reason)
    posture = Posture(boundary, Jail.PROCESS, is_warm=False, limits_by="none")
    return Opened(Closed(posture, f"no sandbox at or above {options.floor} works here: {reason}"), proof, refusals)


async def _open(jail: Jail, boundary: Boundary, options: SandboxOptions) -> tuple[Sandbox, str]:
    """The sandbox, and the proof of its boundary where that is not ours."""
    if jail is Jail.PROCESS:
        raise WorkerStartError("it is for scorers, not for programs")
    if jail is Jail.RUNSC:
        maker = await Runsc.find(options.interpreter or own_interpreter())
        posture = Posture(Boundary.GVISOR, jail, is_warm=False, limits_by="rlimit")
        return await open_cold(maker, posture, options), maker.proof
    return await open_warm(jail, boundary, options), ""


async def open_cold(maker: Maker, posture: Posture, options: SandboxOptions) -> ColdSandbox:
    """A sandbox whose jail is made by a command, after the probe; raises WorkerStartError."""
    sandbox = ColdSandbox(maker, posture, options.concurrency)
    await _probe(sandbox)
    return sandbox


async def open_warm(jail: Jail, boundary: Boundary, options: SandboxOptions) -> WarmSandbox:
    """A `namespaces` or `landlock` sandbox that has run the probe; raises WorkerStartError."""
    cgroups: CgroupPool | None = None
    limits_by = "rlimit+poll" if jail is Jail.NAMESPACES else "rlimit"
    num_ready = 0 if options.is_cold else options.concurrency
    try:
        cgroups = CgroupPool.open(num_ahead=options.concurrency + num_ready)
        limits_by = cgroups.version
    except OSError as error:
        log.info("sandbox: limits by %s, because cgroups cannot be used: %s", limits_by, error)
    posture = Posture(boundary, jail, is_warm=not options.is_cold, limits_by=limits_by)
    made_of = WarmOptions(jail, options.interpreter, options.concurrency, num_ready, options.is_cold)
    sandbox = WarmSandbox(made_of, posture, cgroups)
    try:
        await sandbox.start()
    except BaseException:
        await sandbox.close()
        raise
    await _probe(sandbox)
    return sandbox


async def _probe(sandbox: Sandbox) -> None:
    """Closes the sandbox and raises WorkerStartError unless a program runs in it."""
    try:
        outcome = await sandbox.run(Program("python", {"main.py": _PROBE}), PROBE_S)
        if outcome.stdout != b"42\n":
            raise WorkerStartError(f"the probe did not run: {outcome.reason or outcome.stderr[:500]!r}")
    except BaseException:
        await sandbox.close()
        raise
