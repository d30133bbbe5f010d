"""Kill -9 at every named crash point of an iteration, a commit, a rollback and a resumption; resume; audit.

A run dies at several points, one after the other, so that each death but the first meets a resumption.

The points are drawn in controller/loop/commits.py. Controller, loop, buffer, Valkey and rollout service are real; the
trainer is one whose weights list what trained them (light_services.py), so the weights themselves are asked what they
have seen. test_chaos.py kills the real trainer and the real engines.
"""

import asyncio
import hashlib
import json
import re
from pathlib import Path

import pytest

from crescendo.buffer import EmbeddedServer, connect
from crescendo.common import failpoints
from crescendo.common.config import load_resolved
from crescendo.common.errors import TEMPORARY
from crescendo.common.runfolder import RunFolder
from crescendo.common.types import TrajectoryId
from crescendo.common.weights import stale_shm_files
from crescendo.controller.chaos import audit, gather
from crescendo.controller.chaos.audit import batches_on, line_of, surviving_branch
from crescendo.controller.loop import commits
from tests.integration.light_run import LightRun
from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

REPOSITORY = Path(__file__).parents[2]
FLUSH_TOKENS = 16

# Where the lives of a run end, one after the other: point:count. The last life has no end but the run's.
LIVES: dict[str, tuple[str, ...]] = {
    "rollout": (
        "sample.opened:3", "rollout.begun:1", "engine.claimed:1", "engine.stepped:9", "engine.flushed:1",
        "rollout.parked:1", "score.settled:1",
    ),
    "training": ("switch.reclaimed:3", "train.numbered:1", "train.recorded:1", "trainer.stepped:1", "train.stepped:1"),
    "publishing": (
        "trainer.published:3", "publish.registered:1", "engine.loaded:1", "publish.attested:1", "publish.admitted:1",
        "validate.done:1",
    ),
    "commit": (
        "trainer.saving:2", "commit.saved:1", "rename commit-00000002.json:1", "commit.renamed:1", "commit.rolled:1",
        "prune.unlisted:1",
    ),
    "rollback": ("rollback.opened:1", "rollback.loaded:1", "stage.left:1", "commit.saved:1"),
    "resumption": ("train.stepped:3", "resume.loaded:1", "resume.rolled:1", "resume.retrained:1", "trainer.stepped:1"),
    "layout": ("stage.left:1", "commit.renamed:1", "layout.ended:1", "resume.loaded:1"),
    "store": ("store.uploading:2", "commit.saved:1", "commit.renamed:1", "prune.unlisted:1"),
    "ends": ("sft.trained:1", "finish.exported:1", "finish.committed:1"),
}  # fmt: skip


SETTINGS = {
    "layout": ("steps.1.rl.stages.1.layout.engine_tensor_parallel=3",),
    "store": ("checkpoint_store.url=file://{root}/store",),
}


@pytest.mark.parametrize("lives", LIVES)
def test_a_run_killed_at_its_crash_points_loses_nothing_and_repeats_nothing(lives: str, tmp_path: Path) -> None:
    deaths = LIVES[lives]
    run = LightRun.prepare(tmp_path, *(one.format(root=tmp_path) for one in SETTINGS.get(lives, ())))
    for number, death in enumerate(deaths):
        marker = tmp_path / f"died-{number}"
        assert run.live(f"{death}:{marker}") == -9, f"{death} was never reached: {run.last_words()}"
        assert marker.exists()
    assert run.live() == 0, run.last_words()
    assert_promises_kept(run)


def test_a_manual_promotion_survives_a_death_between_its_rollback_and_its_commit(tmp_path: Path) -> None:
    run = LightRun.prepare(
        tmp_path, "steps.1.rl.stages.0.gate.name=manual", "steps.1.rl.stages.0.max_iterations=30",
        "steps.1.rl.stages.0.on_max_iterations=stop",
    )  # fmt: skip
    assert run.live(f"rollback.opened:1:{tmp_path / 'died'}", promote_after=3) == -9
    assert run.live() == 0, run.last_words()
    assert len(run.events("stage.promote")) == 1
    assert_promises_kept(run)


def assert_promises_kept(run: LightRun) -> None:
    evidence = asyncio.run(gather(run.folder))
    assert evidence.history.complete
    assert audit(evidence) == []
    assert stale_shm_files(run.folder.run_id()) == []
    named = {manifest.folder for manifest in evidence.manifests}
    stored = run.folder.root.parent / "store" / run.folder.run_id() / "checkpoints"
    kept = stored if stored.exists() else run.folder.checkpoints
    assert {path.name for path in kept.iterdir() if path.is_dir()} == named
    assert [path.name for path in run.folder.checkpoints.iterdir() if path.name.startswith(".")] == []
    weights = json.loads((run.folder.export / "weights.json").read_text())
    assert [line for line in weights if line.startswith("sft")] == ["sft 0 4"]
    batches = batches_on(line_of(surviving_branch(evidence), evidence.branches), evidence)
    shown = {row["iteration"] for row in run.rows(run.folder.metrics) if "branch" in row}
    assert shown == set(range(1, batches[-1].iteration + 1))
    names = [[name for group in batch.groups for name in group.trajectory_ids] for batch in batches]
    tokens = asyncio.run(token_digests(run, names))
    assert [line for line in weights if line.startswith("rl")] == [
        f"rl {batch.branch} {batch.iteration} {digest} {' '.join(members)}"
        for batch, digest, members in zip(batches, tokens, names, strict=True)
    ]


async def token_digests(run: LightRun, batches: list[list[str]]) -> list[str]:
    """What the light trainer remembers of the tokens of each batch, from the buffer as it is now."""
    server = EmbeddedServer.from_config(run.folder.buffer, load_resolved(run.folder.config).buffer)
    buffer = await connect(await asyncio.to_thread(server.start), run.folder.run_id())
    try:
        found = [await buffer.load_trajectories([TrajectoryId(name) for name in names]) for names in batches]
    finally:
        await buffer.close()
        await asyncio.to_thread(server.stop)
    return [hashlib.sha256(b"".join(one.token_ids.tobytes() for one in batch)).hexdigest()[:16] for batch in found]


def test_every_crash_point_is_drawn_and_tested() -> None:
    folders = ("common", "controller", "rollout", "trainer", "buffer")
    sources = [path.read_text() for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'failpoints\.reach\("([a-z.]+)"', text)}
    drawn = {word for line in (commits.__doc__ or "").splitlines() for word in line.split()}
    tested = {death.split(":")[0] for deaths in LIVES.values() for death in deaths}
    assert named - drawn == set()
    assert named - tested == set()


@pytest.mark.timeout(600)
def test_real_engines_and_a_real_trainer_die_in_the_middle_and_a_killed_engine_costs_one_flush_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = ("engine.stepped:60", "trainer.stepped:3", "trainer.saving:3", "engine.loaded:2", "commit.renamed:4")
    markers = {death.partition(":")[0]: tmp_path / death for death in deaths}
    entries = [f"{death}:{marker}" for death, marker in zip(deaths, markers.values(), strict=True)]
    monkeypatch.setenv(failpoints.VARIABLE, ",".join(entries))
    run = RunProcess.start(tmp_path, "real", f"rollout.flush_tokens={FLUSH_TOKENS}")
    code = run.wait(300)
    while code != 0 and not (run.folder / "summary.json").exists():
        assert code == TEMPORARY or markers["commit.renamed"].exists(), run.text
        run = RunProcess.resume(run.folder)
        code = run.wait(300)
    assert [death for death, marker in markers.items() if not marker.exists()] == []
    assert audit(asyncio.run(gather(RunFolder(run.folder)))) == []

    facts = json.loads(markers["engine.stepped"].read_text())
    unflushed = {name: count for name, count in facts.items() if name != "pid"}
    print(json.dumps({"flush_tokens": FLUSH_TOKENS, "in_flight": len(unflushed), "most": max(unflushed.values())}))
    assert len(unflushed) > 1
    assert 0 < max(unflushed.values()) <= FLUSH_TOKENS
