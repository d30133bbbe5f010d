"""One job through fetched inputs, verbs, a suspension and the loss of its head: all on one set of real pods.

Each test stands on those before it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView
from tests.cluster.kube.node import ADDRESS, Node
from tests.cluster.node.installed import Stopwatch
from tests.cluster.node.long_job import BUCKET, bucket_secret, fill_claim, long_job, rows
from tests.cluster.node.running_job import GROWS_S, RUNNING_S, Eventually, RunningJob
from tests.cluster.node.short_job import volumes
from tests.fakes.object_store import ObjectStore

NAME = "long"
DENIED = "denied"
KEY = "AKIAREADER"
REQUEST = "rl.crescendo.dev/request"
PODS = f"rl.crescendo.dev/job={NAME},rl.crescendo.dev/component=head"
STANDS_S = 5.0


@dataclass
class LongJob(RunningJob):
    """The job, and the bucket of its validation data."""

    store: ObjectStore

    def ask(self, wish: str) -> None:
        """Asks for a verb and waits until the run has taken it."""
        self.node.kubectl("annotate", "rljob", NAME, "-n", self.view.namespace, f"{REQUEST}={wish}", "--overwrite")
        self.until(f"{wish} is answered", lambda: self.answer().get("text") == wish, 45)
        assert self.answer()["state"] == "Taken", self.answer()

    def answer(self) -> dict[str, str]:
        """status.request."""
        found: dict[str, str] = self.view.status().get("request") or {}
        return found


@pytest.fixture(scope="module")
def store(node: Node) -> Iterator[ObjectStore]:
    """A bucket on the node, for who has the key. Made in the node's network, where this thread is."""
    found = ObjectStore({f"{BUCKET}/held-out/rows.jsonl": rows(first=60)}, key_id=KEY, host=ADDRESS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def submitted(node: Node, team: str, volume_folder: Path, store: ObjectStore) -> None:
    """The job, and one whose key opens nothing."""
    port = int(store.url.rpartition(":")[2])
    items = fill_claim(team, volume_folder)
    for name, secret, key in ((NAME, "reader", KEY), (DENIED, "stranger", "AKIASTRANGER")):
        items += [bucket_secret(secret, team, store.url, key), *volumes(name, team, volume_folder)]
        items += [long_job(name, team, volume_folder, store_port=port, secret=secret)]
    node.apply({"apiVersion": "v1", "kind": "List", "items": items})


@pytest.fixture
def job(
    node: Node, team: str, volume_folder: Path, store: ObjectStore, submitted: None, eventually: Eventually
) -> LongJob:
    return LongJob(node, JobView(node, NAME, team), volume_folder / f"{NAME}-run", eventually, store)


def test_a_wrong_key_ends_in_words_that_help(job: LongJob, node: Node, team: str) -> None:
    denied = JobView(node, DENIED, team)
    job.until("it is given up", lambda: denied.phase == "Failed", 240)
    status = denied.status()
    assert status["reason"] == "FetchFailed"
    for word in ("spec.datasets.validation", f"s3://{BUCKET}/held-out", "secretRef", "AWS_ACCESS_KEY_ID"):
        assert word in status["message"]
    node.kubectl("delete", "rljob", DENIED, "-n", team, "--timeout=60s")


def test_its_inputs_are_fetched_into_the_cache(job: LongJob, volume_folder: Path, watch: Stopwatch) -> None:
    with watch.step("long job submitted to Running"):
        job.until_phase("Running")
    (model,), (train,), (validation,) = (
        (job.volume / "cache").glob(f"{name}-*/files") for name in ("model", "train", "validation")
    )
    claim = volume_folder / "inputs"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (model / name).read_bytes() == (claim / "model" / name).read_bytes()
    assert (train / "sums.jsonl").read_bytes() == rows(first=0)
    assert (validation / "rows.jsonl").read_bytes() == rows(first=60)
    assert job.store.requests
    job.store.requests.clear()
    job.grows()


def test_it_pauses_and_goes_on(job: LongJob) -> None:
    job.ask("pause one")
    job.until("it stands still", lambda: stands_still(job), 60)
    job.ask("unpause two")
    job.grows()


def stands_still(job: LongJob) -> bool:
    """Whether no iteration ends for some seconds; one takes a second or two."""
    done = len(job.iterations())
    try:
        job.eventually("another", lambda: len(job.iterations()) > done, STANDS_S)
    except pytest.fail.Exception:
        return True
    return False


def test_it_commits_when_asked(job: LongJob) -> None:
    before = job.commits()
    job.ask("checkpoint three")
    job.until("a new commit", lambda: job.commits()[-1:] != before[-1:], 90)


def test_it_is_suspended_with_a_commit_and_gives_everything_back(job: LongJob, watch: Stopwatch) -> None:
    before = job.commits()
    with watch.step("long job suspended"):
        job.view.patch(suspend=True)
        job.until_phase("Suspended", 180)
    assert job.commits()[-1] != before[-1]
    assert job.view.condition("Suspended") == "True"
    job.until("its RayJob is gone", lambda: job.view.children("rayjob") == [])
    job.until("its pods are gone", lambda: job.view.children("pod") == [], 120)
    buffer = job.node.get("statefulset", f"{NAME}-buffer", "-n", job.view.namespace)
    assert buffer["spec"]["replicas"] == 0


def test_it_resumes_from_that_commit_and_fetches_nothing_again(job: LongJob, watch: Stopwatch) -> None:
    last = json.loads(job.commits()[-1].read_text())
    with watch.step("long job resumed to Running"):
        job.view.patch(suspend=False)
        job.until_phase("Running")
    job.grows()
    (restored,) = job.events("run.restored")
    assert restored["message"] == f"from commit {last['sequence']}, iteration {last['iteration']}"
    assert job.iterations()[-1] > last["iteration"]
    for name in ("model", "train", "validation"):
        said = job.node.kubectl("logs", "-n", job.view.namespace, "-l", PODS, "-c", f"fetch-{name}")
        assert said.count("is in the cache") == 1
    assert job.store.requests == []


def test_without_its_head_it_restarts(job: LongJob, watch: Stopwatch) -> None:
    attempt = job.view.status()["attempt"]
    with watch.step("long job without its head to Running"):
        job.node.kubectl("delete", "pod", "-n", job.view.namespace, "-l", PODS, "--grace-period=0", "--force")
        job.until("another attempt runs", lambda: runs_as(job, attempt + 1), RUNNING_S)
    assert {"AttemptLost", "AttemptFailed"} & set(job.reasons())
    job.until("it is restored again", lambda: len(job.events("run.restored")) == 2, GROWS_S)
    assert job.store.requests == []


def runs_as(job: LongJob, attempt: int) -> bool:
    status = job.view.status()
    return bool(status["attempt"] == attempt and status["phase"] == "Running")


def test_it_is_promoted_and_succeeds(job: LongJob, watch: Stopwatch) -> None:
    with watch.step("long job promoted to Succeeded"):
        job.view.patch(promoteTo="context-64")
        job.until_phase("Succeeded")
    status = job.view.status()
    assert status["promotedTo"] == "context-64"
    assert status["attempt"] >= 3
    assert job.events("run.done")
