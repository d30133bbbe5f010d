"""A control plane with all that RLJobs need: KubeRay, fake nodes with fake GPUs, the definition, the namespace."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.kube.control_plane import ControlPlane

CRD = Path(__file__).parents[3] / "helm/crescendo/files/rljob-crd.yaml"
SYSTEM = "crescendo-system"
# One line a call of this user, and of nobody else.
WATCHED_USER = "operator"
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [WATCHED_USER]}, {"level": "None"}],
}


@contextmanager
def ready(folder: Path, nodes: int = 8, *, audited: bool = False) -> Iterator[ControlPlane]:
    """Started; ended and removed afterwards. audited: `calls` counts what WATCHED_USER asks of the API server."""
    plane = ControlPlane(folder)
    if audited:
        folder.mkdir(parents=True, exist_ok=True)
        policy = folder / "policy.json"
        policy.write_text(json.dumps(POLICY))
        log = (f"--audit-policy-file={policy}", f"--audit-log-path={folder / 'audit.log'}", "--audit-log-maxsize=4000")
        plane.api_server_options = (*plane.api_server_options, *log)
    try:
        plane.start()
        plane.start_kuberay()
        plane.start_fake_nodes(nodes)
        plane.kubectl("apply", "--server-side", "-f", str(CRD))
        plane.wait_for_definitions("rljobs.rl.crescendo.dev")
        plane.kubectl("create", "namespace", SYSTEM)
        yield plane
    finally:
        plane.stop()


def calls(plane: ControlPlane) -> Counter[str]:
    """How often WATCHED_USER asked for what so far: "verb resource", with the subresource."""
    found: Counter[str] = Counter()
    with (plane.folder / "audit.log").open() as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # being written
                continue
            about = event.get("objectRef") or {"resource": event["requestURI"]}
            kind = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            found[f"{event['verb']} {kind}"] += 1
    return found
