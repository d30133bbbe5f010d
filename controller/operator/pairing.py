"""Whether a job's two volumes are the pair that it may write to. Pure.

Run folder and buffer tell one story, so their claims carry one id as an annotation: the uid of the job that made them.
A job takes up volumes with its own id, or with that of an earlier job if it is told to (ADOPT_ANNOTATION).
"""

from typing import Final

from crescendo.controller.operator.crd import GROUP
from crescendo.controller.operator.resource import ADOPT_ANNOTATION, Job, Manifest, Observed

STORAGE_ID: Final = f"{GROUP}/storage-id"
FOREIGN: Final = "(nobody)"  # of a claim that no job made


def carried(claim: Manifest | None, job: Job) -> tuple[str, bool]:
    """The id that a claim carries, and whether the claim goes with an earlier job of this name.

    Empty where there is no claim, where it goes, and of one that the job names but no job has marked.
    """
    if claim is None:
        return "", False
    about = claim["metadata"]
    found = str((about.get("annotations") or {}).get(STORAGE_ID, ""))
    if not found:
        return "" if about["name"] == job.claim_given else FOREIGN, False
    goes = found != job.storage_id and ("deletionTimestamp" in about or bool(about.get("ownerReferences")))
    return "" if goes else found, goes


def mismatch(observed: Observed) -> str:
    """Why volume and buffer are not the pair that this job may write to; empty when they are."""
    wanted = observed.job.storage_id
    for name, found in (("volume", observed.storage_id), ("buffer", observed.buffer_storage_id)):
        if found == FOREIGN:
            named = ", name it in spec.storage.claimName" if name == "volume" else ""
            return (
                f"the {name}'s claim exists and is no job's: delete it{named}, choose another metadata.name, or, of "
                f"a restored run, give both claims one annotation {STORAGE_ID} and the job {ADOPT_ANNOTATION} with it"
            )
        if found and found != wanted:
            return (
                f"the {name} belongs to job {found}: delete it, name another in spec.storage.claimName, or "
                f"continue that run with the annotation {ADOPT_ANNOTATION}: {found}"
            )
    return ""
