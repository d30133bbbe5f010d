"""A job with its checkpoints in a bucket, in pods that share no volume: it loses its volume, and goes on all the same.

Each test stands on those before it.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView
from tests.cluster.kube.node import ADDRESS, Node
from tests.cluster.node.installed import Stopwatch
from tests.cluster.node.long_job import bucket_secret
from tests.cluster.node.running_job import GROWS_S, RUNNING_S, Eventually, RunningJob
from tests.cluster.node.short_job import empty_volume, volumes
from tests.cluster.node.stored_job import Kept, stored_job
from tests.fakes.bucket import Bucket

NAME = "stored"
DENIED = "stored-denied"
KEY = "AKIAKEEPER"
CLAIM = f"{NAME}-run"


@dataclass
class StoredJob(RunningJob):
    """The job and its bucket."""

    bucket: Bucket
    run: str

    def kept(self) -> Kept:
        """What the bucket has of it now."""
        return Kept(self.bucket, self.run)


@pytest.fixture(scope="module")
def bucket(node: Node) -> Iterator[Bucket]:
    """On the node, for who has the key. Made in the node's network, where this thread is."""
    found = Bucket(key_id=KEY, host=ADDRESS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def submitted(node: Node, team: str, volume_folder: Path, bucket: Bucket) -> None:
    """The job, and a smaller one whose key opens nothing."""
    port = int(bucket.url.rpartition(":")[2])
    items = []
    for name, key in ((NAME, KEY), (DENIED, "AKIASTRANGER")):
        secret = f"{name}-key"
        job = stored_job(name, team, volume_folder, port=port, secret=secret, disaggregated=name == NAME)
        items += [bucket_secret(secret, team, bucket.url, key), *volumes(name, team, volume_folder), job]
    node.apply({"apiVersion": "v1", "kind": "List", "items": items})


@pytest.fixture
def job(
    node: Node, team: str, volume_folder: Path, bucket: Bucket, submitted: None, eventually: Eventually
) -> StoredJob:
    view = JobView(node, NAME, team)
    run = f"{team}.{view.body()['metadata']['uid']}"
    return StoredJob(node, view, volume_folder / CLAIM, eventually, bucket, run)


def test_it_commits_into_the_bucket_from_pods_that_share_no_volume(job: StoredJob, watch: Stopwatch) -> None:
    with watch.step("stored job submitted to its second commit"):
        job.until_phase("Running")
        job.until("two commits are in the bucket", lambda: len(job.kept().manifests()) >= 2, GROWS_S)
    kept = job.kept()
    assert kept.is_whole(kept.manifests()[-1])
    assert mounting(job, CLAIM) == {"head": True, "worker": False, "rollout": False}
    assert not list((job.folder / "checkpoints").glob("i*")), "checkpoints lie on the volume too"


def mounting(job: StoredJob, claim: str) -> dict[str, bool]:
    """Whether the job's Ray pods mount a claim, by component."""
    labels = f"rl.crescendo.dev/job={NAME},rl.crescendo.dev/component in (head,worker,rollout)"
    found = {}
    for pod in job.node.get("pods", "-n", job.view.namespace, "-l", labels)["items"]:
        claims = [one.get("persistentVolumeClaim", {}).get("claimName") for one in pod["spec"]["volumes"]]
        found[pod["metadata"]["labels"]["rl.crescendo.dev/component"]] = claim in claims
    return found


def test_a_wrong_key_ends_in_words_that_help(job: StoredJob, node: Node, team: str) -> None:
    denied = JobView(node, DENIED, team)
    job.until("it is given up", lambda: denied.phase == "Failed", RUNNING_S)
    status = denied.status()
    assert status["reason"] == "InvalidRun", status
    for word in ("s3://", "is refused", "spec.storage.checkpoints.secretRef"):
        assert word in status["message"]
    assert "AKIASTRANGER" not in str(status)
    node.kubectl("delete", "rljob", DENIED, "-n", team, "--timeout=60s")


def test_it_is_suspended_with_a_commit(job: StoredJob, watch: Stopwatch) -> None:
    before = job.kept().manifests()[-1]["iteration"]
    with watch.step("stored job suspended"):
        job.view.patch(suspend=True)
        job.until_phase("Suspended", 180)
        job.until("its pods are gone", lambda: job.view.children("pod") == [], 120)
    kept = job.kept()
    assert kept.manifests()[-1]["iteration"] >= before
    assert all(map(kept.is_whole, kept.manifests()))


def test_on_an_empty_volume_it_goes_on_from_the_bucket(
    job: StoredJob, node: Node, team: str, volume_folder: Path, watch: Stopwatch
) -> None:
    last = job.kept().manifests()[-1]
    node.kubectl("delete", "pvc", CLAIM, "-n", team, "--timeout=60s")
    node.kubectl("delete", "pv", f"{team}-{CLAIM}", "--timeout=60s")
    shutil.rmtree(job.volume)
    node.apply(empty_volume(CLAIM, team, volume_folder))
    with watch.step("stored job resumed on an empty volume to its next iteration"):
        job.view.patch(suspend=False)
        job.until_phase("Running")
        job.grows()
    (restored,) = job.events("run.restored")
    assert restored["message"] == f"from commit {last['sequence']}, iteration {last['iteration']}"
    assert job.iterations()[0] == last["iteration"] + 1


def test_it_is_promoted_and_succeeds_with_its_weights_in_both_places(job: StoredJob, watch: Stopwatch) -> None:
    with watch.step("stored job promoted to Succeeded"):
        job.view.patch(promoteTo="context-64")
        job.until_phase("Succeeded")
    kept = job.kept()
    newest = kept.manifests()[-1]
    assert newest["iteration"] == job.iterations()[-1]
    assert kept.is_whole(newest)
    weights = (job.folder / "export/model.safetensors").read_bytes()
    assert weights == kept["export/model.safetensors"] != kept["inputs/model/model.safetensors"]
    assert list(job.folder.glob("archive/data/*.parquet"))
    assert job.events("run.done")
