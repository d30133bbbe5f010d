"""spec.promoteTo: asked of the run that trains, acknowledged as status.promotedTo. Pure.

wish is a later stage       -> PromoteStage, then promotedTo        once an attempt
wish is the present stage   -> promotedTo                           its answer was lost
attempt ends before that    -> promotedTo is forgotten              the run is resumed from a commit before the wish
run succeeds                -> promotedTo                           it was past every stage
"""

from crescendo.controller.operator.resource import Job, Report
from crescendo.controller.operator.status import Draft
from crescendo.controller.operator.writes import Call, Note


def ask(job: Job, report: Report, draft: Draft) -> tuple[tuple[Call, ...], tuple[Note, ...]]:
    """What is to be asked of a run in some stage, and events about it."""
    wish = job.spec.get("promoteTo", "")
    if not wish or wish == job.status.get("promotedTo", ""):
        return (), ()
    if wish == report.stage:
        draft.set(promotedTo=wish)
        return (), ()
    later = later_stages(job, report.stage)
    if wish in later:
        return (Call("promote", wish),), ()
    why = f"stage {wish} does not follow {report.stage}; later stages: {', '.join(later) or 'none'}"
    notes = (Note("Warning", "PromotionRefused", why),) if job.status.get("message") != why else ()
    draft.phase("Running", "PromotionRefused", why)
    return (), notes


def forget_lost(job: Job, draft: Draft) -> None:
    """Before another attempt: what was granted but not reached, the run has forgotten; it is asked again."""
    reached = str((job.status.get("progress") or {}).get("stage", ""))
    if job.status.get("promotedTo") in later_stages(job, reached):
        draft.set(promotedTo=None)


def done(job: Job, draft: Draft) -> None:
    """A run that has succeeded is past every stage."""
    if wish := job.spec.get("promoteTo"):
        draft.set(promotedTo=wish)


def later_stages(job: Job, stage: str) -> list[str]:
    """Names of the stages after this one, over all steps of the run."""
    steps = job.spec["run"].get("steps") or ()
    names = [str(found["name"]) for step in steps for found in (step.get("rl") or {}).get("stages") or ()]
    return names[names.index(stage) + 1 :] if stage in names else names
