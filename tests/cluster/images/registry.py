"""A registry of images and charts on loopback that asks for a login: Debian's docker-registry, state in one folder."""

import subprocess
import time
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.cluster.kube.processes import die_with_parent, free_port

PROGRAM: Final = "docker-registry"
USER: Final = "releaser"
PASSWORD: Final = "opensesame"  # what is hashed below, with the least rounds
_LOGINS: Final = f"{USER}:$2b$05$JYh8qVO0DJs8fRrBG7V2WODx8xHOzTz0lCbUrrU3FpCqVqsZctZI6\n"
READY_S: Final = 20.0
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class Registry:
    """Started by start, ended by stop. folder: for blobs, settings and the log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.host = f"127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Answers when this returns; raises RuntimeError with the log when it does not."""
        logins, settings, log = (self._folder / name for name in ("logins", "registry.yaml", "registry.log"))
        logins.write_text(_LOGINS)
        settings.write_text(
            yaml.safe_dump(
                {
                    "version": 0.1,
                    "storage": {"filesystem": {"rootdirectory": str(self._folder / "blobs")}},
                    "http": {"addr": self.host},
                    "auth": {"htpasswd": {"realm": "tests", "path": str(logins)}},
                }
            )
        )
        with log.open("wb") as sink:
            self._child = subprocess.Popen(
                [PROGRAM, "serve", str(settings)], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{PROGRAM} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it."""
        self._child.kill()
        self._child.wait()

    def manifest(self, name: str, reference: str) -> tuple[str, dict[str, Any]]:
        """The digest of an image or a chart, and its manifest."""
        found = self._get(f"{name}/manifests/{reference}")
        return found.headers["docker-content-digest"], found.json()

    def blob(self, name: str, digest: str) -> dict[str, Any]:
        """A blob that is JSON: an image's configuration."""
        answer: dict[str, Any] = self._get(f"{name}/blobs/{digest}").json()
        return answer

    def _get(self, path: str) -> httpx.Response:
        headers = {"accept": ", ".join(MANIFESTS)}
        found = httpx.get(f"http://{self.host}/v2/{path}", auth=(USER, PASSWORD), headers=headers, timeout=30)
        return found.raise_for_status()

    def _answers(self) -> bool:
        """Whether it serves, and nobody without a login."""
        try:
            return httpx.get(f"http://{self.host}/v2/", timeout=5).status_code == httpx.codes.UNAUTHORIZED
        except httpx.TransportError:
            return False
