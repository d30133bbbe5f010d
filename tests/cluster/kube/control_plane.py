"""A real control plane on loopback: etcd, API server, controller manager; scheduler, KubeRay and kwok when asked for.

Needs no root and no container engine. Ready in about ten seconds; `stop` leaves no process.
"""

import json
import shutil
import subprocess
import time
import urllib.error
from pathlib import Path
from typing import Any

from tests.cluster.kube.build import binaries, module_folder
from tests.cluster.kube.pki import Authority
from tests.cluster.kube.processes import Processes, free_port

READY_S = 120.0
# Without pod-complete: a submitter that ends before its Ray job makes KubeRay fail the RayJob after 30 s.
STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-delete",
)
KUBERAY = "github.com/ray-project/kuberay/ray-operator"


class ControlPlane:
    """Everything but nodes. folder: for state and logs, removed at the end."""

    address = "127.0.0.1"
    api_server_options: tuple[str, ...] = ("--endpoint-reconciler-type=none",)
    manager_options: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes(binaries(), folder / "logs")
        self._authority = Authority(folder / "pki")
        self._pki = folder / "pki"
        self.port = free_port()
        self.server = f"https://{self.address}:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it works."""
        self._issue()
        self._start_etcd()
        self._start_api_server()
        self.admin = self._authority.kubeconfig("admin", self.server)
        self._wait("the API server", lambda: self._kubectl_quiet("get", "--raw=/readyz") == "ok")
        self._start_controller_manager()
        self._wait("the controller manager", lambda: "default" in self._kubectl_quiet("get", "sa", "-o", "name"))

    def start_kuberay(self) -> None:
        """Installs KubeRay's definitions and runs its operator."""
        definitions = module_folder(KUBERAY, within="kuberay") / "config/crd/bases"
        self.kubectl("apply", "--server-side", "-f", str(definitions))
        self.wait_for_definitions("rayjobs.ray.io", "rayclusters.ray.io")
        arguments = [
            "--enable-leader-election=false",
            "--reconcile-concurrency=8",  # one at a time is its default, and slower than an operator beside it
            f"--metrics-addr=127.0.0.1:{free_port()}",
            f"--health-probe-bind-address=127.0.0.1:{free_port()}",
        ]
        self.processes.start(
            "kuberay-operator", arguments, cwd=self.folder, environment={"KUBECONFIG": str(self.admin)}
        )

    def start_fake_nodes(self, count: int, gpus: int = 8) -> None:
        """Runs the scheduler and kwok, with nodes that claim to have GPUs."""
        self._start_scheduler()
        stages = module_folder("sigs.k8s.io/kwok") / "kustomize/stage"
        texts = [(stages / f"{name}.yaml").read_text() for name in STAGES]
        config = self.folder / "stages.yaml"
        config.write_text("\n---\n".join(texts))
        arguments = [
            f"--config={config}",
            f"--kubeconfig={self.admin}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            f"--server-address=127.0.0.1:{free_port()}",
        ]
        self.processes.start("kwok", arguments, cwd=self.folder)
        capacity = {"cpu": "96", "memory": "1Ti", "pods": "500", "nvidia.com/gpu": str(gpus)}
        nodes = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": f"fake-{number}",
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                    "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": f"fake-{number}"},
                },
                "status": {"allocatable": capacity, "capacity": capacity},
            }
            for number in range(count)
        ]
        self.apply({"apiVersion": "v1", "kind": "List", "items": nodes})
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=90s")

    def stop(self) -> None:
        """Ends every process and removes the folder."""
        self.processes.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # kubectl ----------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Runs kubectl; raises CalledProcessError with its message."""
        ran = subprocess.run(
            [str(binaries() / "kubectl"), f"--kubeconfig={kubeconfig or self.admin}", *arguments],
            input=stdin, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        if ran.returncode != 0:
            raise KubectlError(ran.stderr.strip())
        return ran.stdout

    def wait_for_definitions(self, *names: str) -> None:
        """Waits until the API server serves these CustomResourceDefinitions (`kubectl wait` trips over new ones)."""
        path = 'jsonpath={.status.conditions[?(@.type=="Established")].status}'
        for name in names:
            self._wait(name, lambda name=name: self._kubectl_quiet("get", "crd", name, "-o", path) == "True")

    def apply(self, manifest: dict[str, Any]) -> str:
        """Applies one manifest server-side."""
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ... -o json`."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def user(self, name: str, groups: tuple[str, ...] = (), server: str = "") -> Path:
        """A kubeconfig of a new user; server: instead of the API server (a proxy)."""
        self._authority.issue(name, name, groups)
        return self._authority.kubeconfig(name, server or self.server)

    def _kubectl_quiet(self, *arguments: str) -> str:
        try:
            return self.kubectl("--request-timeout=5s", *arguments)
        except (KubectlError, urllib.error.URLError):
            return ""

    # Parts ------------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        self._authority.issue("apiserver", "kube-apiserver", addresses=("10.96.0.1", self.address))
        self._authority.issue("admin", "admin", ("system:masters",))
        self._authority.issue("manager", "system:kube-controller-manager")
        self._authority.issue("scheduler", "system:kube-scheduler")
        self._authority.signing_key("accounts")

    def _start_etcd(self) -> None:
        client, peer = free_port(), free_port()
        self._etcd = f"http://127.0.0.1:{client}"
        peers = f"http://127.0.0.1:{peer}"
        arguments = [
            "--name=test", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}", f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=test={peers}", "--unsafe-no-fsync",
            "--log-level=warn",
        ]  # fmt: skip
        self.processes.start("etcd", arguments, cwd=self.folder)

    def _start_api_server(self) -> None:
        arguments = [
            f"--etcd-servers={self._etcd}", f"--bind-address={self.address}", f"--advertise-address={self.address}",
            f"--secure-port={self.port}", "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", *self.api_server_options,
            f"--client-ca-file={self._authority.certificate}", f"--tls-cert-file={self._pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self._pki / 'apiserver.key'}",
            f"--service-account-key-file={self._pki / 'accounts.pub'}",
            f"--service-account-signing-key-file={self._pki / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        ]  # fmt: skip
        self.processes.start("kube-apiserver", arguments, cwd=self.folder)

    def _start_controller_manager(self) -> None:
        manager = self._authority.kubeconfig("manager", self.server)
        arguments = [
            f"--kubeconfig={manager}", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
            "--use-service-account-credentials", f"--root-ca-file={self._authority.certificate}",
            f"--service-account-private-key-file={self._pki / 'accounts.key'}", "--leader-elect=false",
            # By default 20 calls a second: volumes are bound, and children of hundreds of jobs collected, at that rate.
            "--kube-api-qps=200", "--kube-api-burst=400", *self.manager_options,
        ]  # fmt: skip
        self.processes.start("kube-controller-manager", arguments, cwd=self.folder)

    def _start_scheduler(self) -> None:
        scheduler = self._authority.kubeconfig("scheduler", self.server)
        arguments = [
            f"--kubeconfig={scheduler}", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
            "--leader-elect=false",
        ]  # fmt: skip
        self.processes.start("kube-scheduler", arguments, cwd=self.folder)

    def _wait(self, what: str, ready: Any) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            self.processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} was not ready within {READY_S:.0f} s; see {self.folder / 'logs'}")
            time.sleep(0.2)


class KubectlError(RuntimeError):
    """What kubectl said on its error stream."""
