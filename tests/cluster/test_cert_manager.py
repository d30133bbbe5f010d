"""Certificates of the real cert-manager: issued, mounted, renewed, missing, gone with their job. Pods are fake."""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from crescendo.common.rpc.guards import PLATFORM
from crescendo.common.rpc.identity import SERVER_NAME
from crescendo.controller.operator.issuer import GRACE
from crescendo.controller.operator.resource import JOB_LABEL
from tests.cluster.conftest import cannot
from tests.cluster.controller_stub import StubController
from tests.cluster.jobs import JobView
from tests.cluster.kube.cert_manager import CertManager, build
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.operator_process import Operator
from tests.unit.chart.rendering import render

pytestmark = pytest.mark.timeout(1800)  # with what it waits for its program to be built
Eventually = Callable[..., None]
Start = Callable[[str], Operator]
ROLES = ("controller", "worker")
PLATFORM_ROLES = ("reward", "console", "probe", "operator")
RBAC = "rbac.authorization.k8s.io/v1"
USER = "certified-operator"


@pytest.fixture(scope="module")
def cert_manager(control_plane: ControlPlane) -> Iterator[CertManager]:
    try:
        build()
    except (RuntimeError, subprocess.SubprocessError) as error:
        cannot(f"cert-manager could not be built: {error}")
    found = CertManager(control_plane)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        print(found.log[-4000:])


@pytest.fixture
def start(
    control_plane: ControlPlane, cert_manager: CertManager, controller: StubController, namespace: str, tmp_path: Path
) -> Iterator[Start]:
    """Starts the operator with an issuer, and with the rights that the chart gives it then."""
    values = {"singleNamespace": True, "executor": {"acceptSharedKernel": True}}
    rendered = render({**values, "operator": {"certificateIssuer": "any"}}, ("cert-manager.io/v1",))
    (role,) = (one for one in rendered if one["kind"] == "Role" and one["metadata"]["name"] == "crescendo-operator")
    about = {"name": USER, "namespace": namespace}
    control_plane.apply({**role, "metadata": about})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": USER}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]
    control_plane.apply(
        {"apiVersion": RBAC, "kind": "RoleBinding", "metadata": about, "roleRef": reference, "subjects": subjects}
    )
    running: list[Operator] = []

    def begin(issuer: str) -> Operator:
        told = {"CRESCENDO_CERTIFICATE_ISSUER": issuer, "CRESCENDO_NAMESPACE": namespace}
        kubeconfig = control_plane.user(USER)
        running.append(Operator(kubeconfig, tmp_path, [namespace], controllers=controller.address, **told))
        running[-1].start()
        return running[-1]

    yield begin
    for one in running:
        one.kill()
        print(one.log[-4000:])


@pytest.fixture
def mount(control_plane: ControlPlane, namespace: str) -> Callable[[str, Path], dict[str, bytes]]:
    """Lays a Secret's files where a pod has them, as a kubelet does; returns them."""

    def lay(name: str, folder: Path) -> dict[str, bytes]:
        found = files(control_plane, name, namespace)
        for file, content in found.items():
            (folder / file).write_bytes(content)
        return found

    return lay


def files(plane: ControlPlane, name: str, namespace: str) -> dict[str, bytes]:
    """What a Secret holds; empty when there is none."""
    text = plane.kubectl("get", "secret", name, "-n", namespace, "--ignore-not-found", "-o", "json")
    data = json.loads(text)["data"] if text else {}
    return {file: base64.b64decode(content) for file, content in data.items()}


def identity_of(held: dict[str, bytes], authority: bytes) -> list[str]:
    """URI names of a certificate that may serve and call, comes from an authority, and fits its key."""
    assert set(held) == {"ca.crt", "tls.crt", "tls.key"}
    assert held["ca.crt"].strip() == authority.strip()
    leaf = x509.load_pem_x509_certificate(held["tls.crt"])
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert load_pem_private_key(held["tls.key"], None).public_key() == leaf.public_key()
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=7)
    usage = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert SERVER_NAME in names.get_values_for_type(x509.DNSName)
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def renew(plane: ControlPlane, name: str, namespace: str, *, ago: timedelta = timedelta()) -> None:
    """As `cmctl renew` does, or did."""
    begun = (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = {"reason": "ManuallyTriggered", "message": "by a test", "lastTransitionTime": begun}
    conditions = plane.get("certificate", name, "-n", namespace)["status"]["conditions"]
    conditions = [one for one in conditions if one["type"] != "Issuing"]
    change = {"status": {"conditions": [*conditions, {"type": "Issuing", "status": "True", **said}]}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(change))
    plane.kubectl("patch", "certificate", name, "-n", namespace, *patch)


def earlier_certificate(name: str, namespace: str) -> dict[str, Any]:
    """What a job of the same name has left, or is about to leave."""
    spec = {"secretName": name, "uris": [f"crescendo://{namespace}/earlier/worker"]}
    spec |= {"issuerRef": {"name": "training", "kind": "ClusterIssuer"}}
    about = {"name": name, "namespace": namespace}
    return {"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": about, "spec": spec}


def owners(plane: ControlPlane, kind: str, name: str, namespace: str) -> list[tuple[str, str]]:
    found = plane.get(kind, name, "-n", namespace)["metadata"].get("ownerReferences", ())
    return sorted((one["kind"], one["name"]) for one in found)


def requested(plane: ControlPlane, name: str, namespace: str) -> str:
    """What cert-manager says of its requests for a Certificate."""
    path = "{.items[*].status.conditions[*].message}"
    label = f"rl.crescendo.dev/component=identity,{JOB_LABEL}=math"
    return plane.kubectl("get", "certificaterequest", "-n", namespace, "-l", label, "-o", f"jsonpath={path}")


def told(plane: ControlPlane, job: JobView) -> list[str]:
    """Reasons of a job's events, oldest first."""
    selector = f"regarding.name={job.name}"
    found = plane.get("events.v1.events.k8s.io", "-n", job.namespace, "--field-selector", selector)["items"]
    return [event["reason"] for event in sorted(found, key=lambda event: str(event["eventTime"]))]


def mounted_by(plane: ControlPlane, job: JobView) -> set[str]:
    """Names of the identity Secrets that its pods mount."""
    pods = plane.get("pod", "-n", job.namespace, "-l", f"rl.crescendo.dev/job={job.name}")["items"]
    sources = [volume.get("secret", {}) for pod in pods for volume in pod["spec"]["volumes"]]
    return {one["secretName"] for one in sources if "identity" in one.get("secretName", "")}


def test_a_run_is_reached_with_certificates_of_the_issuer_and_with_renewed_ones(
    control_plane: ControlPlane,
    cert_manager: CertManager,
    controller: StubController,
    start: Start,
    job: JobView,
    namespace: str,
    mount: Callable[[str, Path], dict[str, bytes]],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    authority = cert_manager.issuer("training").certificate
    start("training")

    eventually("an attempt is created", lambda: job.children("rayjob") == ["math-1"])
    uid = job.body()["metadata"]["uid"]
    for role in ROLES:
        name = f"math-identity-{role}"
        held = files(control_plane, name, namespace)
        assert identity_of(held, authority) == [f"crescendo://{namespace}/{uid}/{role}"]
        assert owners(control_plane, "certificate", name, namespace) == [("RLJob", "math")]
        assert owners(control_plane, "secret", name, namespace) == [("RLJob", "math")]
    for role in PLATFORM_ROLES:
        name = f"crescendo-identity-{role}"
        eventually(f"{name} is issued", lambda name=name: files(control_plane, name, namespace) != {})
        assert identity_of(files(control_plane, name, namespace), authority) == [
            f"crescendo://{namespace}/{PLATFORM}/{role}"
        ]

    eventually("it has its pods", lambda: job.condition("ClusterReady") == "True", 90)
    assert mounted_by(control_plane, job) == {f"math-identity-{role}" for role in ROLES}
    stub = tmp_path / "controller"  # until now of the operator's own authority, which nobody trusts here
    first = mount("math-identity-controller", stub)
    job.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    eventually("it runs", lambda: job.phase == "Running")

    for name in ("math-identity-controller", "crescendo-identity-operator"):
        renew(control_plane, name, namespace)
    eventually(
        "it is renewed",
        lambda: files(control_plane, "math-identity-controller", namespace)["tls.crt"] != first["tls.crt"],
    )
    second = mount("math-identity-controller", stub)
    assert identity_of(second, authority) == identity_of(first, authority)
    assert second["tls.key"] != first["tls.key"]
    own = tmp_path / "identity/tls.crt"
    eventually(
        "the operator has its own",
        lambda: own.read_bytes() == files(control_plane, "crescendo-identity-operator", namespace)["tls.crt"],
    )
    controller.run.status.stage = "context-64"
    eventually("it is reached", lambda: job.status()["progress"]["stage"] == "context-64")

    control_plane.kubectl("delete", "secret", "math-identity-worker", "-n", namespace)
    eventually("it is issued again", lambda: "tls.crt" in files(control_plane, "math-identity-worker", namespace))


def test_nothing_is_held_while_an_issuer_is_missing_and_the_status_says_why(
    control_plane: ControlPlane,
    cert_manager: CertManager,
    start: Start,
    job: JobView,
    namespace: str,
    eventually: Eventually,
) -> None:
    operator = start("tomorrow")

    def says(*words: str) -> bool:
        status: dict[str, Any] = job.status()
        return status.get("reason") == "CertificateMissing" and all(one in status["message"] for one in words)

    eventually("the status says so", lambda: says("math-identity-controller", "tomorrow", "not found"))
    assert says("kubectl describe clusterissuer tomorrow", f"-n {namespace}"), job.status()
    assert (job.phase, job.condition("Accepted")) == ("Pending", "True")
    assert job.children("rayjob") == job.children("pod") == []
    assert "crescendo-identity-operator is not issued" in operator.log
    shown = control_plane.kubectl("get", "rljob", "math", "-n", namespace, "-o", "wide")
    assert "CertificateMissing" in shown
    unready = {"apiVersion": "cert-manager.io/v1", "kind": "ClusterIssuer", "metadata": {"name": "tomorrow"}}
    control_plane.apply({**unready, "spec": {"ca": {"secretName": "tomorrow-authority"}}})
    eventually("the status says what is wrong now", lambda: says("Ready"))
    cert_manager.issuer("tomorrow")
    eventually("an attempt is created", lambda: job.children("rayjob") == ["math-1"])
    assert job.status().get("failures", 0) == 0


def test_a_renewal_that_fails_while_a_job_runs_is_told_until_it_comes(
    control_plane: ControlPlane,
    cert_manager: CertManager,
    start: Start,
    job: JobView,
    namespace: str,
    mount: Callable[[str, Path], dict[str, bytes]],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    issuer, name = f"{namespace}-issuer", "math-identity-worker"
    cert_manager.issuer(issuer)
    operator = start(issuer)
    eventually("an attempt is created", lambda: job.children("rayjob") == ["math-1"])
    mount("math-identity-controller", tmp_path / "controller")
    job.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    eventually("it runs", lambda: job.phase == "Running")
    first = files(control_plane, name, namespace)

    control_plane.kubectl("delete", "clusterissuer", issuer)
    renew(control_plane, name, namespace, ago=GRACE)
    eventually("cert-manager waits", lambda: issuer in requested(control_plane, name, namespace))
    operator.kill()  # the next one looks at certificates at once
    operator.start()
    eventually("the condition says so", lambda: job.condition("CertificateExpiring") == "True")
    status = job.status()
    ends = x509.load_pem_x509_certificate(first["tls.crt"]).not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (status["phase"], status["reason"]) == ("Running", "CertificateExpiring")
    assert all(one in status["message"] for one in (name, ends, issuer, "not found")), status
    assert files(control_plane, name, namespace) == first

    cert_manager.issuer(issuer)
    eventually("it is renewed", lambda: files(control_plane, name, namespace)["tls.crt"] != first["tls.crt"])
    eventually("the condition turns", lambda: job.condition("CertificateExpiring") == "False", 90)
    assert (job.phase, job.status()["reason"]) == ("Running", "Running")
    assert [one for one in told(control_plane, job) if "Certificate" in one] == [
        "CertificateExpiring",
        "CertificateRenewed",
    ]


@pytest.mark.parametrize("options", [(), ("--enable-certificate-owner-ref",)], ids=["plain", "with owners"])
def test_certificates_and_keys_go_with_their_job(
    control_plane: ControlPlane,
    cert_manager: CertManager,
    start: Start,
    create: Callable[..., JobView],
    namespace: str,
    eventually: Eventually,
    options: tuple[str, ...],
) -> None:
    authority = cert_manager.issuer("training").certificate
    control_plane.apply(earlier_certificate("math-identity-worker", namespace))
    eventually("an earlier job has one", lambda: files(control_plane, "math-identity-worker", namespace) != {})
    job = create("math")
    start("training")
    eventually("an attempt is created", lambda: job.children("rayjob") == ["math-1"])
    held, uid = files(control_plane, "math-identity-worker", namespace), job.body()["metadata"]["uid"]
    assert identity_of(held, authority) == [f"crescendo://{namespace}/{uid}/worker"]
    owned = [("RLJob", "math")]
    if options:
        cert_manager.run(*options)
        owned = [("Certificate", "math-identity-worker"), *owned]
    eventually("they are owned", lambda: owners(control_plane, "secret", "math-identity-worker", namespace) == owned)
    control_plane.kubectl("delete", "rljob", "math", "-n", namespace)
    selected = (
        "get",
        "certificate,certificaterequest",
        "-n",
        namespace,
        "-l",
        "rl.crescendo.dev/job=math",
        "-o",
        "name",
    )
    eventually("Certificates are gone", lambda: control_plane.kubectl(*selected) == "")
    for role in ROLES:
        name = f"math-identity-{role}"
        eventually(f"{name} is gone", lambda name=name: files(control_plane, name, namespace) == {})
    assert files(control_plane, "crescendo-identity-operator", namespace)
