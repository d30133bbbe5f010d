"""A run file as an RLJob and back, for `crescendo render` and `crescendo submit`. Pure.

What the operator decides on a cluster (name, folder, buffer, placement, console) leaves the run file on the way there
and comes back as the RLJob's own fields.
"""

from typing import Any, Final

from crescendo.common.config import check_mapping
from crescendo.common.config.spelling import to_camel, to_snake
from crescendo.common.errors import ConfigError
from crescendo.controller.operator.resource import API_VERSION, KIND, Manifest

_CLUSTER_DECIDES: Final = ("buffer", "placement", "console")
_MODES: Final = {"colocated": "Colocated", "disaggregated": "Disaggregated"}


def to_rljob(run: Manifest, *, image: str, name: str = "", namespace: str = "") -> Manifest:
    """The RLJob of a run file (a mapping in either spelling, plain values).

    name: instead of run.name. Raises ConfigError when the run cannot be.
    """
    config = check_mapping(run, "the run file")
    spec_run = {key: value for key, value in to_camel(run).items() if key not in _CLUSTER_DECIDES}
    identity = {key: value for key, value in spec_run.get("run", {}).items() if key not in ("name", "folder")}
    spec_run.pop("run", None)
    if identity:
        spec_run = {"run": identity, **spec_run}
    placement: Manifest = {"mode": _MODES[config.placement.name], "nodes": 1}
    if config.placement.device == "gpu":
        placement["devicesPerNode"] = config.placement.num_devices
    metadata: Manifest = {"name": name or config.run.name}
    if namespace:
        metadata["namespace"] = namespace
    spec = {"image": image, "placement": placement, "run": spec_run}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def to_run_file(job: Manifest) -> Manifest:
    """The run file of an RLJob, in snake_case; raises ConfigError when it is none."""
    if job.get("kind") != KIND or not isinstance(job.get("spec", {}).get("run"), dict):
        raise ConfigError(
            f"this is not an {KIND} with spec.run.", field="kind", fix="Give `kubectl get rljob -o yaml`."
        )
    run: dict[str, Any] = dict(to_snake(job["spec"]["run"]))
    run["run"] = {"name": job["metadata"]["name"], **run.get("run", {})}
    placement = job["spec"].get("placement") or {}
    devices = int(placement.get("devicesPerNode", 0)) * int(placement.get("nodes", 1))
    run["placement"] = {"name": placement.get("mode", "Colocated").lower(), "device": "gpu" if devices else "cpu"}
    if devices:
        run["placement"]["num_devices"] = devices
    ordered = ["run", *(key for key in run if key != "run")]
    return {key: run[key] for key in ordered}
