"""What to do about one RLJob: from what was observed to what is to be written. Pure.

    no attempt -> create <name>-<n>          children first, then the status: a crash between repeats both
    running    -> progress, promotion, scale
    suspend    -> StopRun with a commit -> delete the RayJob -> Suspended      goes through even if flipped back
               -> buffer to 0 pods; to 1 and ready again before the next attempt
    failed     -> status (failures, next attempt's number and time) -> delete the old RayJob -> create the next one
    ended      -> Complete or Failed, kept for ttlSecondsAfterFinished

A failure is written into the status before the RayJob that shows it is deleted, and attempts are numbered, so that an
operator that dies between any two writes neither counts a failure twice nor makes a child twice. reconcile.py carries
a plan out in the order of its fields.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from crescendo.controller.operator import failures, promotion
from crescendo.controller.operator.failures import Failure
from crescendo.controller.operator.pairing import mismatch
from crescendo.controller.operator.requests import VERBS, Request, acknowledged, pending
from crescendo.controller.operator.resource import (
    ADOPT_ANNOTATION,
    JOB_LABEL,
    Attempt,
    BufferServer,
    Job,
    Observed,
    format_time,
)
from crescendo.controller.operator.size import wanted_size
from crescendo.controller.operator.status import PODLESS, Draft
from crescendo.controller.operator.writes import RESYNC_S, SOON_S, Call, Note, Plan

DEFAULT_PRE_RUNNING_S: Final = 1800
DEFAULT_SUSPEND_S: Final = 600
DEFAULT_BACKOFF_LIMIT: Final = 3
SILENT: Final = timedelta(minutes=5)
"""A controller that does not answer for so long is worth a person's look; it answers while it trains and commits."""


def plan(observed: Observed) -> Plan:
    """The next writes for one job; none when all is as it should be."""
    job = observed.job
    if job.deleting or not job.is_ours:
        return Plan()
    if job.finished:
        return _finished(observed)
    draft = Draft(job, observed.now)
    decided = _decide(observed, draft)
    decided = _asked(observed, draft, decided)
    status = draft.finish()
    alive = observed.newest is not None and not decided.create and status.get("phase") not in PODLESS
    return replace(decided, renew=alive, status=status if status != dict(job.status) else None)


def _decide(observed: Observed, draft: Draft) -> Plan:
    wrong = "; ".join(observed.problems)
    if wrong and not observed.job.is_true("Running"):  # what runs is left alone: an edit or a new check is no failure
        return _fail(observed, draft, Failure("ValidationFailed", wrong, retryable=False))
    if observed.leaving:
        draft.phase("Pending", "EarlierJobLeaving", f"{observed.leaving} goes with an earlier job of this name")
        return Plan(again_s=SOON_S)
    if unpaired := mismatch(observed):
        return _fail(observed, draft, Failure("StorageMismatch", unpaired, retryable=False))
    draft.condition("Accepted", not wrong, "ValidationFailed" if wrong else "Valid", wrong)
    if observed.job.suspend or observed.job.status.get("phase") == "Suspending":
        return _suspend(observed, draft)
    draft.set(suspendTime=None)
    if observed.job.is_true("Suspended"):
        draft.condition("Suspended", False, "Resumed")
    return _run(observed, draft)


def _asked(observed: Observed, draft: Draft, decided: Plan) -> Plan:
    """What people want of a run besides: asked for while it runs, refused otherwise."""
    wish, phase = pending(observed.job), draft.value.get("phase", "Pending")
    if wish is None:
        return decided
    if isinstance(wish, Request) and phase == "Running" and observed.verbs_reviewed:
        return replace(decided, ask=wish) if observed.report is not None else decided
    why = f"the job does not run (phase {phase})"
    if not observed.verbs_reviewed:
        why = "nobody reviews here who asks: an administrator applies the chart's admission policy of the verbs first"
    elif isinstance(wish, str):
        why = f"the annotation must be a verb ({', '.join(VERBS[:-1])} or {VERBS[-1]}:ENGINE), a space and a new word"
    draft.set(request=acknowledged(wish, why, observed.now))
    note = Note("Warning", "RequestRefused", f"{str(wish)[:64]}: {why}")
    return replace(decided, events=(*decided.events, note))


def told(request: Request, refusal: str) -> Note:
    """The event of an answer that a run gave."""
    if refusal:
        return Note("Warning", "RequestRefused", f"{request}: {refusal}")
    return Note("Normal", "RequestTaken", f"{request}: the run has taken it")


# Suspension ---------------------------------------------------------------------------------------------


def _suspend(observed: Observed, draft: Draft) -> Plan:
    job, attempt = observed.job, observed.newest
    if attempt is None:
        draft.stop_running("Suspended")
        draft.condition("Suspended", True, "Suspended", "no pods; the run goes on from its last commit")
        draft.phase("Suspended", "Suspended")
        draft.set(suspendTime=None, attemptTime=None)
        events = () if job.is_true("Suspended") else (Note("Normal", "Suspended", "devices are free"),)
        return Plan(events=events, buffer=_to_stop(observed))
    asked = job.time("suspendTime")
    begun = asked or observed.now
    draft.set(suspendTime=begun)
    ended = attempt.succeeded or attempt.failed or attempt.queued or not job.is_true("Running")
    ended = ended or (observed.report is not None and observed.report.stopped)
    limit = timedelta(seconds=int(job.spec.get("suspendDeadlineSeconds", DEFAULT_SUSPEND_S)))
    late = observed.now - begun >= limit
    if not (ended or late):
        draft.phase("Suspending", "Committing", observed.unasked or "waiting for a commit")
        note = (Note("Normal", "Suspending", "the run commits, then its pods go"),) if asked is None else ()
        return Plan(calls=(Call("stop"),), events=note, again_s=SOON_S)
    notes: tuple[Note, ...] = ()
    if late and job.attempt <= attempt.number:
        notes = (Note("Warning", "SuspendDeadlineExceeded", "no commit in time; the last one counts"),)
    draft.phase("Suspending", "PodsEnding", "its pods are being ended")
    # The number moves on first, so that a lost RayJob is not taken for a failure afterwards.
    draft.set(attempt=attempt.number + 1)
    return Plan(delete=_names(observed), events=notes, again_s=SOON_S)


# Running ------------------------------------------------------------------------------------------------


def _run(observed: Observed, draft: Draft) -> Plan:
    job = observed.job
    number = max(1, job.attempt)
    stale = tuple(one.name for one in observed.attempts if one.number < number)
    current = observed.newest
    if current is None or current.number < number:
        if not stale and job.time("attemptTime") is not None and job.attempt == number:
            return _retry(observed, draft, failures.lost(job.attempt_name(number)))
        return _create(observed, draft, number, stale)
    draft.set(attempt=current.number, restarts=current.number - 1)
    if job.time("attemptTime") is None:
        draft.set(attemptTime=observed.now, nextAttemptTime=None)
    if current.deleting:
        return Plan(again_s=SOON_S)
    return _watch(observed, draft, current, stale)


def _create(observed: Observed, draft: Draft, number: int, stale: tuple[str, ...]) -> Plan:
    due = observed.job.time("nextAttemptTime")
    if stale or (due is not None and observed.now < due):
        reason, message = (str(observed.job.status.get(name, "")) for name in ("reason", "message"))
        draft.phase("Restarting" if number > 1 else "Pending", reason or "Waiting", message)
        return Plan(delete=stale, again_s=_until(due or observed.now, observed.now))
    if observed.uncertified:  # pods would hold devices and mount nothing, or what an earlier job of this name had
        draft.phase("Restarting" if number > 1 else "Pending", "CertificateMissing", observed.uncertified)
        return Plan(certify=True, again_s=SOON_S)
    if observed.buffer is not None and not observed.buffer.ready:
        return _await_buffer(observed, draft, observed.buffer)
    draft.set(attempt=number, attemptTime=observed.now, nextAttemptTime=None, bufferTime=None, restarts=number - 1)
    promotion.forget_lost(observed.job, draft)
    draft.phase("Starting", "AttemptCreated", f"RayJob {observed.job.attempt_name(number)}")
    note = Note("Normal", "AttemptCreated", f"RayJob {observed.job.attempt_name(number)}")
    return Plan(create=number, events=(note,), again_s=SOON_S)


def _await_buffer(observed: Observed, draft: Draft, server: BufferServer) -> Plan:
    """Nothing starts before the server of an earlier attempt serves again."""
    begun = draft.time("bufferTime") or observed.now
    if observed.now - begun >= _pre_running(observed):
        text = f"its server did not answer {int(_pre_running(observed).total_seconds())} s after it was started"
        return _retry(observed, draft, Failure("BufferNotReady", text, retryable=True))
    draft.set(bufferTime=begun)
    draft.phase("Starting", "BufferStarting", "the buffer's server reads its append-only file")
    return Plan(buffer=None if server.replicas else 1, again_s=SOON_S)


def _to_stop(observed: Observed) -> int | None:
    """A server that nobody uses gives its pod back; its volume keeps the data."""
    return 0 if observed.buffer is not None and observed.buffer.replicas else None


def _watch(observed: Observed, draft: Draft, attempt: Attempt, stale: tuple[str, ...]) -> Plan:
    job = observed.job
    draft.cluster(observed, attempt.name, attempt.cluster_name)
    if attempt.succeeded:
        return _complete(observed, draft)
    if attempt.failed:
        return _retry(observed, draft, failures.classify(attempt))
    if attempt.queued:
        return _queued(observed, draft, attempt, stale)
    if job.is_true("Queued"):
        draft.condition("Queued", False, "Admitted")
        draft.set(attemptTime=observed.now)
    ready, wanted = observed.pods
    up = wanted > 0 and ready >= wanted
    missing = "; ".join(filter(None, (f"{ready} of {wanted} pods ready", observed.obstacle)))
    draft.condition("ClusterReady", up, "PodsReady" if up else "PodsMissing", missing)
    late = _fetch_failure(observed, draft) or _late(observed, draft)
    if late is not None:
        return late
    if attempt.job_status != "RUNNING" or observed.report is None:
        return replace(_unheard(observed, draft, attempt), delete=stale)
    return replace(_progress(observed, draft), delete=stale)


def _unheard(observed: Observed, draft: Draft, attempt: Attempt) -> Plan:
    """Its controller has said nothing: because it is not up yet, or because the operator cannot ask it."""
    job, step = observed.job, observed.fetch
    starts = not job.is_true("Running")
    events: tuple[Note, ...] = ()
    if observed.unasked:
        events = _warn(job, draft, "Starting" if starts else "Running", "OperatorUncertified", observed.unasked)
    elif not starts and observed.silent_since is not None and observed.now - observed.silent_since >= SILENT:
        text = f"the run has not answered since {format_time(observed.silent_since)}; what you see is older. Do its "
        text += f"pods run, does a network policy keep the operator from them? See `crescendo logs {job.name}`"
        events = _warn(job, draft, "Running", "ControllerSilent", text)
    elif starts and step is not None:
        draft.phase("Starting", "Fetching", f"{step.name}: {step.message or 'under way'}")
    elif starts and observed.obstacle:
        events = _warn(job, draft, "Starting", "PodsBlocked", observed.obstacle)
    elif starts:
        draft.phase("Starting", attempt.step, attempt.message)
    # An event of KubeRay's tells of the next step; a fetch and a controller that begins to answer make none.
    asked = (attempt.job_status == "RUNNING" and not observed.unasked) or step is not None
    begun = draft.time("attemptTime")
    due = begun + _pre_running(observed) if begun is not None and starts else None
    return Plan(events=events, again_s=SOON_S if asked else _until(due, observed.now))


def _warn(job: Job, draft: Draft, phase: str, reason: str, message: str) -> tuple[Note, ...]:
    """Tells what is in the way: in the status while it is, by an event when it begins to be."""
    draft.phase(phase, reason, message)
    return () if job.status.get("reason") == reason else (Note("Warning", reason, message),)


def _queued(observed: Observed, draft: Draft, attempt: Attempt, stale: tuple[str, ...]) -> Plan:
    """Kueue holds it back, or has taken its devices away: no failure, and no deadline runs."""
    job, hold = observed.job, observed.hold
    events: tuple[Note, ...] = ()
    if job.is_true("Running"):
        events = (Note("Warning", "Evicted", f"{hold.message}; the run goes on from its last commit"),)
    draft.stop_running("Queued")
    if job.queue != attempt.queue:
        # It asks anew where it is told to now; its number moves on first, as for a suspension.
        draft.set(attempt=attempt.number + 1, attemptTime=None)
        draft.phase("Queued", "QueueChanged", f"to {job.queue}" if job.queue else "out of any queue")
        return Plan(delete=_names(observed), events=events, again_s=SOON_S)
    draft.condition("Queued", True, hold.reason, hold.message)
    draft.phase("Queued", hold.reason, hold.message)
    return Plan(delete=stale, events=events)


def _progress(observed: Observed, draft: Draft) -> Plan:
    job, report = observed.job, observed.report
    if report is None:
        return Plan()
    events: tuple[Note, ...] = ()
    if not job.is_true("Running"):
        events = (Note("Normal", "Running", f"attempt {draft.value['attempt']} runs"),)
        if job.time("startTime") is None:
            draft.set(startTime=observed.now)
    draft.condition("Running", True, "Running")
    draft.running()
    draft.progress(report)
    calls, notes = promotion.ask(job, report, draft)
    events += notes
    scale = tuple(
        (group, pods) for group, pods in wanted_size(job, report).items() if observed.replicas.get(group, pods) != pods
    )
    if scale:
        sizes = ", ".join(f"{group} {observed.replicas[group]} -> {pods}" for group, pods in scale)
        events += (Note("Normal", "Scaled", f"pods for stage {report.stage}: {sizes}"),)
    return Plan(calls=calls, scale=scale, events=events)


def _fetch_failure(observed: Observed, draft: Draft) -> Plan | None:
    """An input that cannot be fetched ends the job; what may pass, the pod tries again by itself."""
    step = observed.fetch
    if step is None or step.exit_code != failures.BAD_INPUT:
        return None
    return _fail(observed, draft, Failure("FetchFailed", f"{step.name}: {step.message}", retryable=False))


def _late(observed: Observed, draft: Draft) -> Plan | None:
    job = observed.job
    active = job.spec.get("activeDeadlineSeconds")
    if active and draft.running_seconds() >= int(active):
        text = f"ran for {active} s (spec.activeDeadlineSeconds); a new RLJob goes on from it: {ADOPT_ANNOTATION}"
        return _fail(observed, draft, Failure("DeadlineExceeded", text, retryable=False))
    begun = draft.time("attemptTime")
    limit = _pre_running(observed)
    if begun is not None and not job.is_true("Running") and observed.now - begun >= limit:
        ready, wanted = observed.pods
        text = f"not running {int(limit.total_seconds())} s (spec.preRunningDeadlineSeconds) after it was created: "
        text += f"{ready} of {wanted} pods ready; "
        text += observed.obstacle or observed.unasked or f"why: `kubectl describe pod -l {JOB_LABEL}={job.name}`"
        return _retry(observed, draft, Failure("PreRunningDeadlineExceeded", text, retryable=True))
    return None


def _pre_running(observed: Observed) -> timedelta:
    return timedelta(seconds=int(observed.job.spec.get("preRunningDeadlineSeconds", DEFAULT_PRE_RUNNING_S)))


# Ends ---------------------------------------------------------------------------------------------------


def _retry(observed: Observed, draft: Draft, failure: Failure) -> Plan:
    job = observed.job
    count = int(draft.value.get("failures", 0)) + 1
    if not failure.retryable:
        return _fail(observed, draft, failure)
    if count > int(job.spec.get("backoffLimit", DEFAULT_BACKOFF_LIMIT)):
        text = f"{count} attempts without progress (spec.backoffLimit); the last: {failure.reason}: {failure.message}"
        return _fail(observed, draft, Failure("BackoffLimitExceeded", text, retryable=False))
    wait_s = failures.backoff_s(count)
    draft.stop_running(failure.reason, failure.message)
    draft.set(
        failures=count,
        attempt=observed.last_number + 1,
        attemptTime=None,
        bufferTime=None,
        nextAttemptTime=observed.now + timedelta(seconds=wait_s),
    )
    draft.phase("Restarting", failure.reason, failure.message)
    note = Note("Warning", failure.reason, f"{failure.message}; the next attempt follows in {wait_s:.0f} s")
    return Plan(delete=_names(observed), events=(note,), again_s=SOON_S)


def _complete(observed: Observed, draft: Draft) -> Plan:
    if observed.report is not None:
        draft.progress(observed.report)
    promotion.done(observed.job, draft)
    draft.stop_running("Complete")
    draft.condition("Complete", True, "Succeeded")
    draft.phase("Succeeded", "Succeeded")
    draft.set(completionTime=observed.now)
    return Plan(events=(Note("Normal", "Succeeded", "the run is done"),))


def _fail(observed: Observed, draft: Draft, failure: Failure) -> Plan:
    if failure.reason == "ValidationFailed":
        draft.condition("Accepted", False, failure.reason, failure.message)
    draft.stop_running(failure.reason, failure.message)
    draft.condition("Failed", True, failure.reason, failure.message)
    draft.phase("Failed", failure.reason, failure.message)
    draft.set(completionTime=observed.now, nextAttemptTime=None)
    # A failed attempt is kept for its logs, its pods are not (shutdownAfterJobFinishes); a live one is ended.
    live = tuple(one.name for one in observed.attempts if not (one.failed or one.succeeded))
    return Plan(events=(Note("Warning", failure.reason, failure.message[:1024]),), delete=live)


def _finished(observed: Observed) -> Plan:
    ttl, ended = observed.job.spec.get("ttlSecondsAfterFinished"), observed.job.time("completionTime")
    live = tuple(one.name for one in observed.attempts if not (one.failed or one.succeeded or one.deleting))
    stop = None if live else _to_stop(observed)
    if ttl is None or ended is None:
        return Plan(delete=live, buffer=stop)
    due = ended + timedelta(seconds=int(ttl))
    return Plan(delete=live, buffer=stop, delete_job=due <= observed.now, again_s=_until(due, observed.now))


def _until(due: datetime | None, now: datetime) -> float:
    """Seconds until the next look when something is due; the resync comes before what is far off."""
    return RESYNC_S if due is None else min(RESYNC_S, max(SOON_S, (due - now).total_seconds()))


def _names(observed: Observed) -> tuple[str, ...]:
    return tuple(one.name for one in observed.attempts if not one.deleting)
