"""Real Helm against a test cluster: `Helm(kubeconfig).install(...)`.

Each command is a process of its own (`python -m tests.cluster.kube.helm`), because Helm's threads keep the network that
they were born in.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

LIMIT_S: Final = 300
ROOT: Final = Path(__file__).parents[3]
CHART: Final = ROOT / "helm/crescendo"


class HelmFailure(RuntimeError):
    """What Helm said."""


class Helm:
    """Helm for one user and namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._config = {"kubeconfig_path": str(kubeconfig), "namespace": namespace}

    def install(
        self, name: str, chart: Path, values: dict[str, Any], *, create_namespace: bool = True
    ) -> dict[str, Any]:
        """Installs and waits until all is ready; raises HelmFailure."""
        options = {"create_namespace": create_namespace, "wait": "watcher", "timeout": LIMIT_S}
        return self._do("install", str(chart), name, values, **options)

    def upgrade(self, name: str, chart: Path, values: dict[str, Any]) -> dict[str, Any]:
        """Upgrades and waits until all is ready; raises HelmFailure."""
        return self._do("upgrade", str(chart), name, values, wait="watcher", timeout=LIMIT_S)

    def rollback(self, name: str) -> dict[str, Any]:
        """Goes back to the revision before; raises HelmFailure."""
        return self._do("rollback", name, wait="watcher", timeout=LIMIT_S)

    def uninstall(self, name: str) -> dict[str, Any]:
        """Uninstalls and waits until all is gone; raises HelmFailure."""
        return self._do("uninstall", name, wait="watcher", timeout=LIMIT_S)

    def test(self, name: str) -> dict[str, Any]:
        """Runs the release's tests; raises HelmFailure when one fails."""
        return self._do("test", name, timeout=LIMIT_S)

    def _do(self, verb: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        asked = {"config": self._config, "verb": verb, "arguments": arguments, "options": options}
        ran = subprocess.run(
            [sys.executable, "-m", "tests.cluster.kube.helm"], input=json.dumps(asked), capture_output=True, text=True,
            timeout=LIMIT_S + 60, check=False, cwd=ROOT,
        )  # fmt: skip
        if ran.returncode != 0:
            raise HelmFailure(ran.stderr.strip())
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer


def main() -> int:
    """Carries out the one command that stands on the standard input."""
    import helm_python

    asked = json.load(sys.stdin)
    try:
        with helm_python.Config(**asked["config"]) as helm:
            options = {**asked["options"]}
            if asked["verb"] == "install":
                options["namespace"] = asked["config"]["namespace"]
            answer = getattr(helm, asked["verb"])(*asked["arguments"], **options)
    except helm_python.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
