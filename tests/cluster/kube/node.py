"""One real node with its control plane: kubelet, containerd, runc, bridge network, kube-proxy and a small DNS.

kube-router enforces NetworkPolicies. Traffic from the node itself is never subject to them, as Kubernetes has it for
the kubelet's probes: what a policy refuses, only a pod can show.

All of it lives in namespaces and a control group of its own: `stop` leaves no process, mount, device or control group,
and nothing listens outside. Needs root and the Debian packages that `missing_programs` names. Pods see each other and
the API server, and nothing else: there is no route to the world, and images are imported, never pulled.

From `start` to `stop` the calling thread is in the node's network.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.cluster.kube import cgroups
from tests.cluster.kube.build import binaries
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.namespaces import Namespaces
from tests.cluster.kube.processes import Processes

ADDRESS: Final = "10.10.0.1"
POD_RANGE: Final = "10.244.0.0/16"
NODE_POD_RANGE: Final = "10.244.0.0/24"
SERVICE_RANGE: Final = "10.96.0.0/16"
API_PORT: Final = 6443  # which policies of those who talk to an API server allow
NAME: Final = "node1"
PLUGINS: Final = Path("/usr/lib/cni")
PROGRAMS: Final = {
    "runc": "runc", "nft": "nftables", "iptables": "iptables", "conntrack": "conntrack", "ip": "iproute2",
    "nsenter": "util-linux", "ipset": "ipset",
}  # fmt: skip
PAUSE: Final = "localhost/pause:1"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing_programs() -> list[str]:
    """Debian packages that this machine lacks for a node."""
    found = [package for name, package in PROGRAMS.items() if shutil.which(name, path=_PATH) is None]
    return found if (PLUGINS / "bridge").exists() else [*found, "containernetworking-plugins"]


class Node(ControlPlane):
    """A cluster of one real node. folder: an absolute path, short enough for sockets below it."""

    address = ADDRESS
    api_server_options = ("--allow-privileged=false", "--kubelet-preferred-address-types=InternalIP")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = API_PORT
        self.server = f"https://{self.address}:{self.port}"
        self._group = f"crescendo-{os.getpid()}"
        self._socket = folder / "containerd.sock"
        self.api_server_options = (
            *self.api_server_options,
            f"--kubelet-client-certificate={self._pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={self._pki / 'kubelet-client.key'}",
            f"--kubelet-certificate-authority={self._authority.certificate}",
        )
        self.manager_options = (
            "--allocate-node-cidrs", f"--cluster-cidr={POD_RANGE}", f"--service-cluster-ip-range={SERVICE_RANGE}",
        )  # fmt: skip

    def start(self) -> None:
        """Starts control plane and node; Ready when this returns."""
        self._namespaces = Namespaces()
        self.processes = Processes(binaries(), self.folder / "logs", self._namespaces.prefix)
        cgroups.make(self._group)
        self._namespaces.enter_network()
        self._make_network()
        super().start()
        self._start_scheduler()
        self._start_names()
        self._start_containerd()
        self._start_kubelet()
        self._start_proxy()
        self._wait("the node", lambda: f"node/{NAME}" in self._kubectl_quiet("get", "nodes", "-o", "name"))
        self.kubectl("wait", "--for=condition=Ready", "node", NAME, "--timeout=90s")
        self._start_policies()

    def stop(self) -> None:
        """Ends everything; raises TimeoutError when something stays."""
        self._namespaces.close()
        self.processes.stop()
        cgroups.remove(self._group)
        shutil.rmtree(self.folder)

    def import_image(self, archive: Path) -> None:
        """Takes the images of an archive in."""
        self._ctr("images", "import", str(archive))

    def inside(self, *command: str) -> None:
        """Runs a command of this machine in the node's namespaces."""
        environment = {"PATH": _PATH}
        subprocess.run([*self._namespaces.prefix, *command], env=environment, timeout=60, check=True)

    # Parts ------------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        super()._issue()
        self._authority.issue("kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",))
        self._authority.issue(NAME, f"system:node:{NAME}", ("system:nodes",), addresses=(ADDRESS,))
        self._authority.issue("proxy", "system:kube-proxy")

    def _make_network(self) -> None:
        """An address of the node on one end of a pair, and a default route that leads nowhere."""
        for line in (
            "mount -t tmpfs tmpfs /run",  # where shims and plugins leave files,
            "mount -t tmpfs tmpfs /var/lib",  # and where the kubelet does
            "ip link set lo up",
            "ip link add node0 type veth peer name node0-end",
            "ip link set node0-end up",
            f"ip addr add {ADDRESS}/24 dev node0",
            "ip link set node0 up",
            "ip route add default via 10.10.0.254",
            "sysctl -qw net.ipv4.ip_forward=1",
            "sysctl -qw net.bridge.bridge-nf-call-iptables=1",  # pods of one bridge are filtered too
        ):
            self.inside(*line.split())

    def _start_names(self) -> None:
        (self.folder / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        file = self.folder / "Corefile"
        file.write_text(
            f"cluster.local:53 in-addr.arpa:53 {{\n bind {ADDRESS}\n errors\n"
            f" kubernetes cluster.local in-addr.arpa {{\n  kubeconfig {self.admin}\n  ttl 1\n }}\n}}\n"
            f".:53 {{\n bind {ADDRESS}\n template ANY ANY {{\n  rcode NXDOMAIN\n }}\n}}\n"
        )
        self.processes.start("dns", ["-conf", str(file)], cwd=self.folder)

    def _start_containerd(self) -> None:
        network = self.folder / "cni"
        network.mkdir()
        (network / "10-bridge.conflist").write_text(json.dumps(_bridge(self.folder)))
        store = self.folder / "containerd"
        store.mkdir()
        self.inside("mount", "-t", "tmpfs", "tmpfs", str(store))  # two gigabytes that no disk need write and delete
        file = self.folder / "containerd.toml"
        file.write_text(_containerd(self.folder, self._socket))
        path = f"{binaries()}:{_PATH}"
        self.processes.start("containerd", ["--config", str(file)], cwd=self.folder, environment={"PATH": path})
        self._wait("containerd", lambda: self._ctr_answers())

    def _start_kubelet(self) -> None:
        file = self.folder / "kubelet.json"
        file.write_text(json.dumps(self._kubelet()))
        kubeconfig = self._authority.kubeconfig(NAME, self.server)
        arguments = [
            f"--config={file}", f"--kubeconfig={kubeconfig}", f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-pki'}", f"--hostname-override={NAME}", f"--node-ip={ADDRESS}",
        ]  # fmt: skip
        self.processes.start("kubelet", arguments, cwd=self.folder, environment={"PATH": _PATH})

    def _start_proxy(self) -> None:
        kubeconfig = self._authority.kubeconfig("proxy", self.server)
        arguments = [
            f"--kubeconfig={kubeconfig}", "--proxy-mode=nftables", f"--cluster-cidr={POD_RANGE}",
            f"--hostname-override={NAME}", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]  # fmt: skip
        self.processes.start("kube-proxy", arguments, cwd=self.folder, environment={"PATH": _PATH})

    def _start_policies(self) -> None:
        arguments = [
            f"--kubeconfig={self.admin}", f"--hostname-override={NAME}", "--run-firewall", "--run-router=false",
            "--run-service-proxy=false", f"--service-cluster-ip-range={SERVICE_RANGE}", "--health-port=0",
        ]  # fmt: skip
        self.processes.start("kube-router", arguments, cwd=self.folder, environment={"PATH": _PATH})
        self._wait("network policies", self._filters)

    def _filters(self) -> bool:
        command = [*self._namespaces.prefix, "iptables", "--wait", "-S", "KUBE-ROUTER-FORWARD"]
        ran = subprocess.run(command, env={"PATH": _PATH}, capture_output=True, timeout=60, check=False)
        return ran.returncode == 0

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self._pki / f"{NAME}.crt"),
            "tlsPrivateKeyFile": str(self._pki / f"{NAME}.key"),
            "clusterDNS": [ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "podLogsDir": str(self.folder / "pod-logs"),
        }

    def _ctr(self, *arguments: str) -> str:
        command = [str(binaries() / "ctr"), "--address", str(self._socket), "--namespace", "k8s.io", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if ran.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(arguments)}: {ran.stderr.strip()}")
        return ran.stdout

    def _ctr_answers(self) -> bool:
        try:
            self._ctr("version")
        except RuntimeError:
            return False
        return True


def _bridge(folder: Path) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": NODE_POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "addresses"),
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _containerd(folder: Path, socket: Path) -> str:
    # restrict_oom_score_adj: lowering it needs CAP_SYS_RESOURCE, which root in a container lacks.
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""
version = 3
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"
[{runtime}]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [{runtime}.cni]
    bin_dirs = ["{PLUGINS}"]
    conf_dir = "{folder}/cni"
  [{runtime}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [{runtime}.containerd.runtimes.runc.options]
      BinaryName = "{shutil.which("runc", path=_PATH)}"
      SystemdCgroup = false
[plugins.'io.containerd.internal.v1.opt']
  path = "{folder}/opt"
"""
