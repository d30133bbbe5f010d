"""`python helm/release.py REGISTRY`: packages the chart and pushes it to oci://REGISTRY/charts, for `make release`.

`--kuberay FOLDER` puts KubeRay's own chart into ours, as a dependency that kuberayOperator.enabled=true installs too.
The repository itself has no copy of it and names no place to fetch it from.

A private registry's login is taken from CRESCENDO_REGISTRY_USER and CRESCENDO_REGISTRY_PASSWORD, if they are set.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import helm_python
import yaml

CHART = Path(__file__).parent / "crescendo"
SUBCHART = "kuberayOperator"  # its key in our values
USER, PASSWORD = "CRESCENDO_REGISTRY_USER", "CRESCENDO_REGISTRY_PASSWORD"


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
    try:
        print(release(arguments.registry, plain_http=arguments.plain_http, kuberay=arguments.kuberay))
    except helm_python.HelmError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def bundled(kuberay: Path, folder: Path) -> Path:
    """A copy of our chart in folder, with KubeRay's as an optional dependency."""
    chart = Path(shutil.copytree(CHART, folder / CHART.name))
    about = yaml.safe_load((kuberay / "Chart.yaml").read_text())
    shutil.copytree(kuberay, chart / "charts" / about["name"])
    description = chart / "Chart.yaml"
    dependency = {
        "alias": SUBCHART,
        "condition": f"{SUBCHART}.enabled",
        "name": about["name"],
        "version": about["version"],
    }
    ours = {**yaml.safe_load(description.read_text()), "dependencies": [dependency]}
    description.write_text(yaml.safe_dump(ours, sort_keys=False))
    return chart


def release(registry: str, *, plain_http: bool, kuberay: Path | None = None) -> str:
    """Packages and pushes; returns what `helm install` takes. Raises HelmError."""
    with tempfile.TemporaryDirectory() as folder, helm_python.RegistryClient(plain_http=plain_http) as client:
        if USER in os.environ:
            host = registry.partition("/")[0]
            client.login(host, os.environ[USER], os.environ[PASSWORD])
        chart = bundled(kuberay, Path(folder)) if kuberay else CHART
        archive = helm_python.package(str(chart), destination=folder)
        helm_python.push(archive, f"oci://{registry}/charts", client=client, plain_http=plain_http)
    return f"oci://{registry}/charts/{CHART.name}"


if __name__ == "__main__":
    sys.exit(main())
