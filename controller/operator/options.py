"""What the operator is told at its start: the chart's values, by environment.

Lives as long as the process; every name has the prefix CRESCENDO_, so that the Deployment in the chart shows them all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from crescendo.common.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """namespace: the operator's own; watch_namespaces: empty watches all; *_address: host:port of the chart's services;
    kuberay_namespace: where KubeRay's operator runs; shared_buffer_url: redis[s]:// of the server that jobs may share,
    with its administrator's name if it is not `default`; shared_buffer_password_file: the administrator's;
    shared_buffer_prefix: of the jobs' logins, one a cluster where clusters share a server;
    ray_version: Ray of the images; trust_days: how long a leaf certificate is valid; certificate_issuer: a cert-manager
    ClusterIssuer, empty for the operator's own authority; rdma_resource: extended resource of the adapters that GPU
    pods get, with IPC_LOCK; empty: none; verbs_reviewed: an admission policy reviews who asks for verbs, without which
    none is taken; health_port: of /healthz, 0 for none; metrics_port: of /metrics, 0 for none."""

    namespace: str = "crescendo-system"
    watch_namespaces: tuple[str, ...] = ()
    reward_address: str = ""
    kuberay_namespace: str = "kuberay-system"
    shared_buffer_url: str = ""
    shared_buffer_password_file: str = ""
    shared_buffer_prefix: str = "crescendo"
    buffer_image: str = ""
    ray_version: str = "2.60.0"
    trust_days: int = 7
    certificate_issuer: str = ""
    rdma_resource: str = ""
    verbs_reviewed: bool = True
    resync_s: float = 30.0
    health_port: int = 8080
    metrics_port: int = 9464

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Options":
        """Reads CRESCENDO_<FIELD>; lists are separated by commas. Raises ConfigError naming the variable."""
        given: dict[str, object] = {}
        for field in fields(cls):
            variable = f"CRESCENDO_{field.name.upper()}"
            text = environment.get(variable)
            if text is None:
                continue
            given[field.name] = _parse(variable, text, field.default)
        return cls(**given)  # type: ignore[arg-type]


def _parse(variable: str, text: str, default: object) -> object:
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{variable} is {text!r}; it must be true or false.", field=variable, fix="Correct it.")
        return text == "true"
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ConfigError(f"{variable} is {text!r}; it must be a number.", field=variable, fix="Correct it.") from None
    if value < 0:
        raise ConfigError(f"{variable} is {text}; it must not be negative.", field=variable, fix="Raise it.")
    return value
