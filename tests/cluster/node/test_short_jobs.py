"""Short jobs in both placements, from kubectl to trained weights: real pods of the real services on CPU."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.cluster.jobs import JobView, crescendo
from tests.cluster.kube.node import Node
from tests.cluster.node.diagnosis import diagnosis
from tests.cluster.node.installed import Stopwatch
from tests.cluster.node.short_job import short_job, takes_disaggregated, volumes

RUNNING_S = 480.0
SUCCEEDED_S = 900.0
Eventually = Callable[..., None]


@pytest.mark.parametrize("name", ["colocated", "disaggregated"])
def test_a_short_job_succeeds(
    node: Node, team: str, volume_folder: Path, watch: Stopwatch, eventually: Eventually, name: str
) -> None:
    if name == "disaggregated" and not takes_disaggregated():
        pytest.skip("this version's config check refuses placement.name disaggregated on CPU")
    job = JobView(node, name, team)
    manifest = short_job(name, team, volume_folder, disaggregated=name == "disaggregated")
    node.apply({"apiVersion": "v1", "kind": "List", "items": volumes(name, team, volume_folder)})
    seen: list[str] = []

    def reached(phase: str) -> bool:
        now = job.phase
        if now not in seen[-1:]:
            seen.append(now)
        assert now not in ("Failed", "Restarting"), diagnosis(node, job)
        return now == phase or "Succeeded" in seen

    node.apply(manifest)
    try:
        with watch.step(f"{name} submitted to Running"):
            eventually("it runs", lambda: reached("Running"), RUNNING_S)
        head = f"rl.crescendo.dev/job={name},rl.crescendo.dev/component=head"
        assert "--dashboard-host" in node.kubectl("get", "pods", "-n", team, "-l", head, "-o", "yaml")
        assert "Ray runtime started" in node.kubectl("logs", "-n", team, "-l", head, "--tail=-1")
        with watch.step(f"{name} Running to Succeeded"):
            eventually("it succeeds", lambda: reached("Succeeded"), SUCCEEDED_S)
    except BaseException:
        print(diagnosis(node, job))
        raise
    assert seen[-2:] == ["Running", "Succeeded"]
    check_status(node, job)
    check_volume(volume_folder / f"{name}-run" / name)
    with watch.step(f"{name} Succeeded to devices free"):
        eventually("its pods have ended", lambda: running_pods(node, team) == [], 60)
    said = crescendo(node, "logs", name, "-n", team)
    assert (said.returncode, "final accuracy" in said.stdout, "\x1b" in said.stdout) == (0, True, False), said.stderr


def running_pods(node: Node, namespace: str) -> list[str]:
    """Names of pods that run or are to run."""
    pods = node.get("pods", "-n", namespace)["items"]
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]


def check_status(node: Node, job: JobView) -> None:
    """What a person sees of a job that succeeded."""
    status = job.status()
    assert (status["phase"], status["restarts"], status["attempt"]) == ("Succeeded", 0, 1)
    held = {one["type"] for one in status["conditions"] if one["status"] == "True"}
    assert {"Accepted", "Complete", "Checkpointed"} <= held
    assert "Failed" not in held
    assert status["progress"]["iteration"] == status["progress"]["totalIterations"] >= 2
    assert status["checkpoint"]["iteration"] >= 2
    events = node.get("events", "-n", job.namespace, "--field-selector=involvedObject.kind=RLJob")["items"]
    reasons = {event["reason"] for event in events if event["involvedObject"]["name"] == job.name}
    assert {"AttemptCreated", "Succeeded"} <= reasons


def check_volume(run: Path) -> None:
    """What the run left on its volume: commits whose files are there, trained weights, and an archive."""
    commits = sorted(run.glob("checkpoints/commit-*.json"))
    assert commits, sorted(map(str, run.rglob("*")))
    assert list(run.glob("checkpoints/i*/part0.safetensors"))
    with safe_open(run / "export/model.safetensors", framework="numpy") as weights:
        assert "model.embed_tokens.weight" in weights.keys()  # noqa: SIM118  not a mapping
    assert list(run.glob("archive/data/*.parquet"))
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[-1] == "run.done"
