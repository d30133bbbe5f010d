"""`python helm/release.py REGISTRY`: packages the chart and pushes it to oci://REGISTRY/charts, for `make release`.

`--kuberay FOLDER` puts KubeRay's own chart into ours, as a dependency that kuberayOperator.enabled=true installs too.
The repository itself has no copy of it and names no place to fetch it from.

A private registry's login is taken from CRESCENDO_REGISTRY_USER and CRESCENDO_REGISTRY_PASSWORD, if they are set, and
kept nowhere. The chart is annotated with the commit that it was made from, and with no address.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python
import yaml

CHART = Path(__file__).parent / "crescendo"
SUBCHART = "kuberayOperator"  # its key in our values
USER, PASSWORD = "CRESCENDO_REGISTRY_USER", "CRESCENDO_REGISTRY_PASSWORD"
REVISION = "org.opencontainers.image.revision"
GIT = ("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="helm/release.py", description="Pushes the chart to an OCI registry.")
    parser.add_argument("registry", metavar="REGISTRY", help="host/path, without a scheme")
    parser.add_argument("--plain-http", action="store_true", help="no TLS, for a registry on this machine")
    parser.add_argument("--kuberay", metavar="FOLDER", type=Path, help="KubeRay's chart (helm-chart/kuberay-operator)")
    arguments = parser.parse_args()
    if arguments.kuberay and not (arguments.kuberay / "Chart.yaml").is_file():
        parser.error(f"--kuberay is {arguments.kuberay}, which has no Chart.yaml; give the folder of KubeRay's chart")
    if "://" in arguments.registry:
        parser.error(f"REGISTRY is {arguments.registry}; give host/path without a scheme")
    if USER in os.environ and PASSWORD not in os.environ:
        parser.error(f"{USER} is set and {PASSWORD} is not; set both, or neither")
    try:
        print(release(arguments.registry, plain_http=arguments.plain_http, kuberay=arguments.kuberay))
    except helm_python.HelmError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def released(folder: Path, kuberay: Path | None) -> Path:
    """A copy of our chart in folder that says its revision, with KubeRay's as an optional dependency if asked."""
    chart = Path(shutil.copytree(CHART, folder / CHART.name))
    description = chart / "Chart.yaml"
    ours = yaml.safe_load(description.read_text())
    if found := revision():
        ours["annotations"][REVISION] = found
    if kuberay:
        about = yaml.safe_load((kuberay / "Chart.yaml").read_text())
        shutil.copytree(kuberay, chart / "charts" / about["name"])
        ours["dependencies"] = [
            {"alias": SUBCHART, "condition": f"{SUBCHART}.enabled", "name": about["name"], "version": about["version"]}
        ]
    description.write_text(yaml.safe_dump(ours, sort_keys=False))
    return chart


def revision() -> str:
    """The commit, with -dirty when files differ from it; empty outside of a repository."""
    try:
        ran = subprocess.run(GIT, cwd=CHART, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return ""
    return ran.stdout.strip()


def release(registry: str, *, plain_http: bool, kuberay: Path | None = None) -> str:
    """Packages and pushes; returns what `helm install` takes. Raises HelmError."""
    with tempfile.TemporaryDirectory() as folder:
        login = Path(folder) / "login.json" if USER in os.environ else None  # else that of `helm registry login`
        with helm_python.RegistryClient(plain_http=plain_http, credentials_file=login) as client:
            if USER in os.environ:
                host = registry.partition("/")[0]
                client.login(host, os.environ[USER], os.environ[PASSWORD], plain_http=plain_http)
            archive = helm_python.package(str(released(Path(folder), kuberay)), destination=folder)
            helm_python.push(archive, f"oci://{registry}/charts", client=client, plain_http=plain_http)
    return f"oci://{registry}/charts/{CHART.name}"


if __name__ == "__main__":
    sys.exit(main())
