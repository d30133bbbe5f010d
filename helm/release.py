"""`python helm/release.py REGISTRY`: packages the chart and pushes it to oci://REGISTRY/charts, for `make release`.

A private registry's login is taken from CRESCENDO_REGISTRY_USER and CRESCENDO_REGISTRY_PASSWORD, if they are set.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import helm_python

CHART = Path(__file__).parent / "crescendo"
USER, PASSWORD = "CRESCENDO_REGISTRY_USER", "CRESCENDO_REGISTRY_PASSWORD"


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="helm/release.py", description="Pushes the chart to an OCI registry.")
    parser.add_argument("registry", metavar="REGISTRY", help="host/path, without a scheme")
    parser.add_argument("--plain-http", action="store_true", help="no TLS, for a registry on this machine")
    arguments = parser.parse_args()
    if "://" in arguments.registry:
        parser.error(f"REGISTRY is {arguments.registry}; give host/path without a scheme")
    try:
        print(release(arguments.registry, plain_http=arguments.plain_http))
    except helm_python.HelmError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def release(registry: str, *, plain_http: bool) -> str:
    """Packages and pushes; returns what `helm install` takes. Raises HelmError."""
    with tempfile.TemporaryDirectory() as folder, helm_python.RegistryClient(plain_http=plain_http) as client:
        if USER in os.environ:
            host = registry.partition("/")[0]
            client.login(host, os.environ[USER], os.environ[PASSWORD])
        archive = helm_python.package(str(CHART), destination=folder)
        helm_python.push(archive, f"oci://{registry}/charts", client=client, plain_http=plain_http)
    return f"oci://{registry}/charts/{CHART.name}"


if __name__ == "__main__":
    sys.exit(main())
