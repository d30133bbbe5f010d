"""cert-manager beside a control plane: its controllers with the CA issuer, built from the Go module proxy, a process.

Started by tests/cluster/test_cert_manager.py; built ahead by ahead.py. Pinned in
tools/cert-manager, whose main.go says why it is ours. Without its webhook, which refuses what this controller would
refuse later, and its injector of authorities into other objects, which nothing here asks for.
"""

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from crescendo.controller.operator.certificates import KeyPair, new_authority
from tests.cluster.kube.build import build_beside, module_folder, program_beside
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.processes import Processes

PROGRAM: Final = "cert-manager"
MODULE: Final = "github.com/cert-manager/cert-manager"
NAMESPACE: Final = "cert-manager"
DEFINITIONS: Final = ("certificates", "certificaterequests", "clusterissuers", "issuers")


def build() -> None:
    """Builds it unless it is there; raises subprocess.CalledProcessError, or RuntimeError when Go is not there."""
    build_beside(PROGRAM, ".")


class CertManager:
    """One cert-manager beside a control plane, between `start` and `stop`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._folder = plane.folder / PROGRAM
        self._processes = Processes(program_beside(PROGRAM).parent, self._folder)

    def start(self) -> None:
        """Installs its definitions, and runs it: ready when an issuer is."""
        definitions = module_folder(MODULE, within=PROGRAM) / "deploy/crds"
        self._plane.kubectl("apply", "--server-side", "-f", str(definitions))
        self._plane.wait_for_definitions(*(f"{kind}.cert-manager.io" for kind in DEFINITIONS))
        self._plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.run()

    def run(self, *options: str) -> None:
        """Ends it if it runs, and runs it with other options."""
        self._processes.stop()
        arguments = [f"--kubeconfig={self._plane.admin}", f"--cluster-resource-namespace={NAMESPACE}", *options]
        self._processes.start(PROGRAM, arguments, cwd=self._folder)

    def stop(self) -> None:
        """Ends it; definitions and objects stay."""
        self._processes.stop()

    def issuer(self, name: str) -> KeyPair:
        """A ClusterIssuer with a new authority, which is returned; one of that name gets the new one."""
        authority = new_authority(datetime.now(UTC), name)
        files = {"tls.crt": authority.certificate, "tls.key": authority.key}
        data = {file: base64.b64encode(content).decode() for file, content in files.items()}
        about = {"name": f"{name}-authority", "namespace": NAMESPACE}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": about, "type": "kubernetes.io/tls", "data": data}
        self._plane.apply(secret)
        self._plane.apply(
            {
                "apiVersion": "cert-manager.io/v1", "kind": "ClusterIssuer", "metadata": {"name": name},
                "spec": {"ca": {"secretName": f"{name}-authority"}},
            }
        )  # fmt: skip
        return authority

    @property
    def log(self) -> str:
        """What it has said."""
        return Path(self._folder / f"{PROGRAM}.log").read_text(errors="replace")
