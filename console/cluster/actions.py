"""What a person may ask of a job from the page: which action fits, what it needs, how it is written. Pure.

Suspend, resume and promote change the spec. The others are wishes in an annotation, which the operator carries to the
run and answers in status.request (controller/operator/requests.py); the word makes a wish a new one.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from crescendo.common.errors import RequestError

WISH: Final = "rl.crescendo.dev/request"
ENDED: Final = ("Succeeded", "Failed")
_WORD: Final = re.compile(r"[0-9a-f]{8}")
_ENGINE: Final = re.compile(r"[a-z0-9-]{1,63}")
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Action:
    """effect: what happens, for people; choice: what has to be chosen, `stage` or `engine`; transient: a wish."""

    verb: str
    label: str
    effect: str
    choice: str = ""
    transient: bool = True

    @property
    def needs(self) -> tuple[tuple[str, str], ...]:
        """(verb, subresource of rljobs) that the person must be allowed."""
        return (("patch", ""), ("update", self.verb)) if self.transient else (("patch", ""),)


ACTIONS: Final = {
    action.verb: action
    for action in (
        Action("pause", "Pause", "The run stands still at its next safe point and keeps its pods and devices."),
        Action("unpause", "Go on", "The run goes on where it stands."),
        Action("drain", "Drain", "The run ends its iteration, commits, then stands still with its pods."),
        Action("checkpoint", "Checkpoint", "The run commits after this iteration and goes on."),
        Action(
            "promote", "Promote", "The run leaves its stage after this iteration and enters the chosen one, for good.",
            choice="stage", transient=False,
        ),
        Action(
            "quarantine", "Quarantine engine", "The engine is taken out of service; the others go on with its work.",
            choice="engine",
        ),
        Action(
            "suspend", "Suspend", "The run commits, then its pods go and its devices are free.", transient=False
        ),
        Action("resume", "Resume", "The job starts again from its last commit.", transient=False),
    )
}  # fmt: skip


def fitting(job: Manifest, *, paused: bool) -> list[Action]:
    """The actions that make sense now, whoever asks. paused: whether the run stands still."""
    phase = (job.get("status") or {}).get("phase", "")
    if phase in ENDED:
        return []
    verbs = ["unpause" if paused else "pause", "drain", "checkpoint", "quarantine"] if phase == "Running" else []
    if paused and verbs:
        verbs.remove("drain")
    if phase == "Running" and later_stages(job):
        verbs.insert(-1, "promote")
    verbs.append("resume" if job["spec"].get("suspend") else "suspend")
    return [ACTIONS[verb] for verb in verbs]


def stages(job: Manifest) -> list[Manifest]:
    """The stages of the run file, in order."""
    steps = (job["spec"].get("run") or {}).get("steps") or ()
    return [stage for step in steps for stage in (step.get("rl") or {}).get("stages") or ()]


def later_stages(job: Manifest) -> list[str]:
    """Names of the stages after the present one."""
    names = [str(stage["name"]) for stage in stages(job)]
    present = ((job.get("status") or {}).get("progress") or {}).get("stage", "")
    return names[names.index(present) + 1 :] if present in names else names


def change(action: Action, job: Manifest, *, uid: str, choice: str, word: str) -> Manifest:
    """The merge patch. uid: of the job that the person looked at; the API server refuses another of the same name.

    Raises RequestError when the choice or the word is none.
    """
    if not _WORD.fullmatch(word):
        raise RequestError("the form has no word of its own.", field="word", fix="Open the job's page again.")
    metadata: Manifest = {"uid": uid}
    if action.choice == "stage" and choice not in (later := later_stages(job)):
        raise RequestError(
            f"stage {choice!r} does not follow the present one; later stages: {', '.join(later) or 'none'}.",
            field="stage",
            fix="Choose a later stage.",
        )
    if action.choice == "engine" and not _ENGINE.fullmatch(choice):
        raise RequestError(f"{choice!r} is no engine's name.", field="engine", fix="Choose one of the job's page.")
    if action.transient:
        wish = f"{action.verb}:{choice} {word}" if action.choice else f"{action.verb} {word}"
        return {"metadata": {**metadata, "annotations": {WISH: wish}}}
    spec: Manifest = {"promoteTo": choice} if action.verb == "promote" else {"suspend": action.verb == "suspend"}
    return {"metadata": metadata, "spec": spec}


def unanswered(job: Manifest) -> str:
    """What somebody asked for and nobody has answered yet; empty when there is nothing."""
    status = job.get("status") or {}
    if status.get("phase") in ENDED:
        return ""
    wish = str((job["metadata"].get("annotations") or {}).get(WISH, ""))
    if wish and wish != (status.get("request") or {}).get("text"):
        return wish.partition(" ")[0].replace(":", " ")
    promotion = str(job["spec"].get("promoteTo") or "")
    if promotion and promotion != status.get("promotedTo"):
        return f"promotion to {promotion}"
    if status.get("phase") == "Suspending":
        return "suspension"
    return ""
