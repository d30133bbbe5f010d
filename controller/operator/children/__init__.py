"""Manifests of a job's children: pure functions from the RLJob to what the API server is to hold."""

from crescendo.controller.operator.children.capacity import capacity_problems
from crescendo.controller.operator.children.inputs import input_problems
from crescendo.controller.operator.children.network import policies
from crescendo.controller.operator.children.pods import account_name, forbidden_patches, metadata, selector
from crescendo.controller.operator.children.rayjob import CONTROLLER_PORT, ray_job
from crescendo.controller.operator.children.run_file import config_map, problems
from crescendo.controller.operator.children.storage import (
    buffer_service,
    buffer_set,
    storage_problems,
    volume_claim,
)
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job, Manifest
from crescendo.controller.operator.shared_buffer import is_shared, shared_problems

__all__ = ["CONTROLLER_PORT", "controller_address", "fixtures", "ray_job", "spec_problems"]


def fixtures(job: Job, options: Options, secret_uid: str) -> list[Manifest]:
    """What every attempt needs and survives it, in the order of writing; Secrets apart (they are made once).

    secret_uid: of the buffer's Secret.
    """
    found = [_service_account(job), config_map(job, options), _controller_service(job), *policies(job, options)]
    claim = volume_claim(job, job.storage_id)
    if claim is not None:
        found.append(claim)
    if not is_shared(job):
        found += [buffer_service(job, job.storage_id), buffer_set(job, job.storage_id, secret_uid, options)]
    return found


def controller_address(job: Job) -> str:
    """Where the run's ControllerService answers."""
    return f"{job.name}-controller.{job.namespace}.svc:{CONTROLLER_PORT}"


def spec_problems(job: Job, options: Options) -> tuple[str, ...]:
    """What the CRD could not refuse."""
    found = shared_problems(job, options)
    unreadable = input_problems(job)
    wrong = unreadable or problems(job, options)
    return tuple(found + storage_problems(job) + forbidden_patches(job) + (wrong or capacity_problems(job, options)))


def _service_account(job: Job) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(job, account_name(job), "controller"),
        "automountServiceAccountToken": False,
    }


def _controller_service(job: Job) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, f"{job.name}-controller", "controller"),
        "spec": {
            "selector": selector(job, "head"),
            "ports": [{"name": "controller", "port": CONTROLLER_PORT, "targetPort": "controller"}],
        },
    }
