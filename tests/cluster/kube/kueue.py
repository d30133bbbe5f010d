"""Kueue beside a control plane: built from the Go module proxy, installed from its own manifests, run as a process.

Started by tests/cluster/test_queue.py; built ahead by ahead.py. Pinned in
tools/kueue/go.mod and kept in a folder of its own pins, so that a newer Kueue rebuilds nothing else.

Its webhooks are real: the Service that they name is an ExternalName of this machine, and the certificate that Kueue
issues to itself in a Secret is laid where a kubelet would mount it. `stop` takes the webhooks away first: without an
answer they refuse every pod.
"""

import base64
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.kube.build import build_beside, module_folder, program_beside
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.cluster.kube.processes import Processes, free_port

MODULE: Final = "sigs.k8s.io/kueue"
NAMESPACE: Final = "kueue-system"
WEBHOOKS: Final = "kueue-webhook-service"
CERTIFICATE: Final = "kueue-webhook-server-cert"
CONFIGURATION: Final = "controller_manager_config.yaml"
# What a cluster would run, and what serves statistics, is left out.
LEFT_OUT: Final = ("Deployment", "APIService", "ConfigMap")
READY_S: Final = 120.0
Manifest = dict[str, Any]


def build() -> None:
    """Builds it unless it is there; raises subprocess.CalledProcessError, or RuntimeError when Go is not there."""
    build_beside("kueue", f"{MODULE}/cmd/kueue")


class Kueue:
    """One Kueue beside a control plane, between `start` and `stop`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._folder = plane.folder / "kueue"
        self._certificates = self._folder / "certificates"
        self._port = free_port()
        self._health = f"127.0.0.1:{free_port()}"
        self._processes = Processes(program_beside("kueue").parent, self._folder)

    def start(self) -> None:
        """Installs and runs it, and waits until it answers."""
        manifests = self._manifests()
        configuration = self._configuration(next(one for one in manifests if one["kind"] == "ConfigMap"))
        manifests = [self._on_this_machine(one) for one in manifests if one["kind"] not in LEFT_OUT]
        definitions = [one for one in manifests if one["kind"] == "CustomResourceDefinition"]
        self._plane.apply({"apiVersion": "v1", "kind": "List", "items": definitions})
        self._plane.wait_for_definitions(*(one["metadata"]["name"] for one in definitions))
        self._plane.apply({"apiVersion": "v1", "kind": "List", "items": manifests})
        arguments = [f"--config={configuration}", "--zap-log-level=2"]
        self._processes.start("kueue", arguments, cwd=self._folder, environment={"KUBECONFIG": str(self._plane.admin)})
        self._wait("its certificate", self._mounted)
        self._wait("Kueue", self._answers)

    def stop(self) -> None:
        """Takes its webhooks away and ends it; definitions and objects stay."""
        for kind in ("mutating", "validating"):
            name = f"kueue-{kind}-webhook-configuration"
            self._plane.kubectl("delete", f"{kind}webhookconfiguration", name, "--ignore-not-found")
        self._processes.stop()

    @property
    def log(self) -> str:
        """What it has said."""
        return (self._folder / "kueue.log").read_text(errors="replace")

    def _manifests(self) -> list[Manifest]:
        folder = module_folder(MODULE, within="kueue") / "config/default"
        found: list[Manifest] = list(yaml.safe_load_all(self._plane.kubectl("kustomize", str(folder))))
        return found

    def _configuration(self, stored: Manifest) -> Path:
        """Kueue's own default, with all its integrations, on addresses of this machine."""
        found = yaml.safe_load(stored["data"][CONFIGURATION])
        found |= {
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": self._health},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._port, "certDir": str(self._certificates)},
            "leaderElection": {"leaderElect": False},
            "featureGates": {"VisibilityOnDemand": False},
        }
        self._certificates.mkdir(parents=True)
        path = self._folder / CONFIGURATION
        path.write_text(yaml.safe_dump(found))
        return path

    def _on_this_machine(self, manifest: Manifest) -> Manifest:
        """The Service leads here, and whoever names it names our port."""
        if manifest["kind"] == "Service" and manifest["metadata"]["name"] == WEBHOOKS:
            return {**manifest, "spec": {"type": "ExternalName", "externalName": "localhost"}}
        clients = [hook["clientConfig"] for hook in manifest.get("webhooks", ())]
        if manifest["kind"] == "CustomResourceDefinition":
            webhook = (manifest["spec"].get("conversion") or {}).get("webhook")
            clients = [webhook["clientConfig"]] if webhook else []
        for client in clients:
            client["service"]["port"] = self._port
        return manifest

    def _mounted(self) -> bool:
        """Whether Kueue has issued its certificate; writes it where Kueue reads it."""
        stored = self._plane.get("secret", CERTIFICATE, "-n", NAMESPACE).get("data") or {}
        if "tls.crt" not in stored:
            return False
        for name, content in stored.items():
            path = self._certificates / name
            path.write_bytes(base64.b64decode(content))
            path.chmod(0o600)
        return True

    def _answers(self) -> bool:
        """Whether it is ready, and the API server reaches its webhooks."""
        try:
            with urllib.request.urlopen(f"http://{self._health}/readyz", timeout=2):
                probe = {
                    "apiVersion": "kueue.x-k8s.io/v1beta2",
                    "kind": "ResourceFlavor",
                    "metadata": {"name": "probe"},
                }
                self._plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(probe))
                return True
        except (urllib.error.URLError, OSError, KubectlError):
            return False

    def _wait(self, what: str, ready: Any) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            self._processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} was not ready within {READY_S:.0f} s:\n{self.log[-2000:]}")
            time.sleep(0.3)
