"""An RLJob whose checkpoints lie in a bucket, and the bucket as this job left it.

Trainer and engine have pods of their own, and the volume is one that a single node mounts: nothing but the network and
the bucket joins them.
"""

import json
from pathlib import Path
from typing import Any, Final

import xxhash

from tests.cluster.node.long_job import ends_when_promoted
from tests.cluster.node.short_job import short_job
from tests.fakes.bucket import Bucket

Manifest = dict[str, Any]
PLACE: Final = "checkpoints/of-teams"


def stored_job(
    name: str, namespace: str, folder: Path, *, port: int, secret: str, disaggregated: bool = True
) -> Manifest:
    """The RLJob. folder: for the run file, while it is made; port, secret: of the bucket."""
    job = short_job(name, namespace, folder, disaggregated=disaggregated)
    ends_when_promoted(job["spec"]["run"])
    store = {"uri": f"s3://{PLACE}", "secretRef": {"name": secret}}
    job["spec"]["storage"] = {"size": "1Gi", "accessMode": "ReadWriteOnce", "checkpoints": store}
    job["spec"]["network"] = {"egressPorts": [port]}
    return job


class Kept:
    """What the bucket has of one run at one moment. run: its id."""

    def __init__(self, bucket: Bucket, run: str) -> None:
        self._files = dict(bucket.files)
        self._at = f"{PLACE}/{run}"

    def manifests(self) -> list[Manifest]:
        """Of its commits, the oldest first."""
        names = sorted(name for name in self._files if name.startswith(f"{self._at}/commits/commit-"))
        return [json.loads(self._files[name]) for name in names]

    def checkpoint(self, manifest: Manifest) -> list[tuple[str, int, int]]:
        """Path, bytes and digest of each file of a commit, as they lie there."""
        below = f"{self._at}/checkpoints/{manifest['folder']}/"
        return sorted(
            (name.removeprefix(below), len(content), xxhash.xxh3_64_intdigest(content))
            for name, content in self._files.items()
            if name.startswith(below)
        )

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether it has the commit's files, and no others of it, as the manifest lists them."""
        return bool(manifest["files"]) and self.checkpoint(manifest) == sorted(map(tuple, manifest["files"]))

    def __getitem__(self, name: str) -> bytes:
        return self._files[f"{self._at}/{name}"]
