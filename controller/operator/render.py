"""A run file as an RLJob and back, for `crescendo render` and `crescendo submit`. Pure.

What the operator decides on a cluster (name, folder, buffer, checkpoint store, placement, console) leaves the run file
on the way there and comes back as the RLJob's own fields.
"""

import difflib
import math
from typing import Any, Final

from crescendo.common.config import check_mapping
from crescendo.common.config.layouts import layout_of
from crescendo.common.config.spelling import to_camel, to_snake
from crescendo.common.errors import ConfigError
from crescendo.controller.operator.crd import definition
from crescendo.controller.operator.quantity import quantity_bytes
from crescendo.controller.operator.resource import API_VERSION, KIND, Manifest

_CLUSTER_DECIDES: Final = ("buffer", "checkpointStore", "placement", "console")
GPUS_A_NODE: Final = 8
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
    apart = layout_of(config).rollout_devices
    if config.placement.device == "gpu":
        placement["devicesPerNode"] = _per_node(math.gcd(config.placement.num_devices, apart))
        placement["nodes"] = config.placement.num_devices // placement["devicesPerNode"]
        if config.placement.device_memory_gib:
            placement["deviceMemory"] = f"{config.placement.device_memory_gib:g}Gi"
    if apart:
        per_node = placement.get("devicesPerNode", 1)
        placement["rolloutNodes"] = apart // per_node
        placement["nodes"] = max(1, config.placement.num_devices // per_node - placement["rolloutNodes"])
    metadata: Manifest = {"name": name or config.run.name}
    if namespace:
        metadata["namespace"] = namespace
    spec: Manifest = {"image": image, "placement": placement, "run": spec_run}
    if "://" in config.checkpoint_store.url:  # a folder means nothing in pods
        spec["storage"] = {"checkpoints": {"uri": config.checkpoint_store.url}}
    elif placement["nodes"] + placement.get("rolloutNodes", 0) > 1:
        spec["storage"] = {"accessMode": "ReadWriteMany"}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _per_node(devices: int) -> int:
    """Of so many GPUs, those of one pod: a run file does not say how many a node has, and most have 8."""
    return max(count for count in range(1, GPUS_A_NODE + 1) if devices % count == 0)


def is_rljob(body: Manifest) -> bool:
    """Whether a file is an RLJob and no run file; raises ConfigError when it wants to be one and is not."""
    wanted = {"apiVersion": API_VERSION, "kind": KIND}
    if not wanted.keys() & body.keys():
        return False
    for field, value in wanted.items():
        if body.get(field) != value:
            raise ConfigError(
                f"{field} is {body.get(field)!r}; it must be {value}.", field=field, fix=f"Write {field}: {value}"
            )
    return True


def to_run_file(job: Manifest) -> Manifest:
    """The run file of an RLJob, in snake_case.

    Raises ConfigError when it is none, when it has fields that an RLJob does not have, when its run cannot be, or when
    the cluster would fetch its inputs, which a run file has in folders.
    """
    if not is_rljob(job) or not isinstance(job.get("spec", {}).get("run"), dict):
        raise ConfigError(
            f"this is not an {KIND} with spec.run.", field="kind", fix="Give `kubectl get rljob -o yaml`."
        )
    _refuse_unknown(job["spec"])
    _refuse_fetched(job["spec"])
    run: dict[str, Any] = dict(to_snake(job["spec"]["run"]))
    run["run"] = {"name": job["metadata"]["name"], **run.get("run", {})}
    placement = job["spec"].get("placement") or {}
    per_node, own = int(placement.get("devicesPerNode", 0)), int(placement.get("rolloutNodes", 0))
    nodes = int(placement.get("nodes", 1)) + own
    run["placement"] = {"name": placement.get("mode", "Colocated").lower(), "device": "gpu" if per_node else "cpu"}
    if per_node or own:
        run["placement"]["num_devices"] = nodes * max(1, per_node)
    if memory := quantity_bytes(str(placement.get("deviceMemory", ""))):
        run["placement"]["device_memory_gib"] = memory / 2**30
    if own:
        run["placement"]["rollout_devices"] = own * max(1, per_node)
    store = (job["spec"].get("storage") or {}).get("checkpoints")
    if store:
        run["checkpoint_store"] = {"url": store["uri"]}
    check_mapping(run, "spec.run")
    ordered = ["run", *(key for key in run if key != "run")]
    return {key: run[key] for key in ordered}


def _refuse_unknown(spec: Manifest) -> None:
    """What stands beside spec.run and is no field: it would be lost, and a typo count as a default."""
    (version,) = definition()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    found = _unknown({name: value for name, value in spec.items() if name != "run"}, schema, "spec")
    if found:
        paths = [path for path, _ in found]
        path, fix = found[0]
        raise ConfigError(f"an RLJob has no {', '.join(paths)}.", field=path, fix=fix)


def _unknown(value: Any, schema: Manifest, path: str) -> list[tuple[str, str]]:
    """(path, fix) of each field that the schema does not have."""
    if isinstance(value, list):
        return [found for item in value for found in _unknown(item, schema.get("items", {}), f"{path}[]")]
    is_open = "properties" not in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if not isinstance(value, dict) or is_open:
        return []
    known, found = schema["properties"], []
    for name, child in value.items():
        if name in known:
            found += _unknown(child, known[name], f"{path}.{name}")
        else:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"Did you mean {near[0]}?" if near else f"Known fields of {path}: {', '.join(known)}."
            found.append((f"{path}.{name}", fix))
    return found


def _refuse_fetched(spec: Manifest) -> None:
    """A run file has its inputs in folders, and its model's name at most is a hub's."""
    datasets = spec.get("datasets") or {}
    inputs = {"spec.model": spec.get("model"), **{f"spec.datasets.{name}": one for name, one in datasets.items()}}
    for field, one in inputs.items():
        if one:
            into = "model.source" if field == "spec.model" else f"data.{field.rpartition('.')[2]}.path"
            raise ConfigError(
                f"{field}.uri is {one.get('uri')}: the cluster fetches it, which `crescendo run` does not.",
                field=f"{field}.uri",
                fix=f"Get it by `crescendo fetch URI FOLDER`, name it in spec.run.{into}, and leave {field} out.",
            )
