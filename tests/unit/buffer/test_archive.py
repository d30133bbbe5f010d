"""The archive's parts by themselves: columns, an object store, lineage."""

import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.buffer import MemoryBuffer
from crescendo.buffer.archive.archiver import Archiver, RunFacts
from crescendo.buffer.archive.lineage import Lineage, LineageBook
from crescendo.buffer.archive.reader import Archive
from crescendo.buffer.archive.schema import SCHEMA, Payload, record_batch
from crescendo.buffer.archive.store import ArchiveStore
from crescendo.common.errors import ConfigError
from crescendo.common.types import (
    Group,
    GroupState,
    PromptId,
    Segment,
    Trajectory,
    TrajectoryState,
    group_id,
    trajectory_id,
)
from crescendo.proto.v1 import common_pb2
from tests.contract.buffer_cases import Driver, ManualClock, batch, component, new_group, prompt

DOCUMENT = Path(__file__).parents[3] / "docs" / "archive.md"


def test_the_document_lists_every_column_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == SCHEMA.names
    for name, kind in rows:
        wanted = str(SCHEMA.field(name).type)
        outer = wanted.split("<")[0].replace("double", "float64").replace("bool_", "bool")
        assert kind.split()[0].rstrip(",") == outer, name


segments = st.lists(
    st.tuples(
        st.integers(1, 9), st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-9, 0, width=32), st.booleans()))
    ),
    max_size=3,
)


@given(st.lists(segments, min_size=1, max_size=3))
def test_rows_say_what_the_trajectories_are(drawn: list[list[tuple[int, list[tuple[int, float, bool]]]]]) -> None:
    identity = group_id(0, 1, 0)
    trajectories = []
    for sample, parts in enumerate(drawn):
        made = tuple(
            Segment(
                version, 1, "8k", 0,
                np.array([token for token, _, _ in tokens], dtype=np.int32),
                np.array([log_prob for _, log_prob, _ in tokens], dtype=np.float32),
                np.array([trains for _, _, trains in tokens], dtype=np.bool_),
            )
            for version, tokens in parts
        )  # fmt: skip
        trajectories.append(
            Trajectory(
                trajectory_id(identity, sample), identity, np.array([1, 2], dtype=np.int32), made,
                TrajectoryState.SCORED, common_pb2.FINISH_REASON_STOP, (component(0.5),),
            )
        )  # fmt: skip
    names = tuple(one.trajectory_id for one in trajectories)
    group = Group(
        identity, PromptId("p0"), GroupState.CONSUMED, 0, 1, "8k", names, 1, trajectories=tuple(trajectories)
    )  # fmt: skip
    rows = record_batch([Payload(group, prompt())], None, None).to_pylist()
    for row, one in zip(rows, trajectories, strict=True):
        assert row["token_ids"] == one.token_ids.tolist()
        assert row["log_probs"] == one.log_probs.tolist()
        assert row["loss_mask"] == [bool(trains) for each in one.segments for trains in each.loss_mask]
        assert sum(each["num_tokens"] for each in row["segments"]) == row["num_tokens"] == one.num_tokens
        assert (row["finish_reason"], row["components"][0]["verdict"], row["reward"]) == ("stop", "correct", 0.5)
        assert row["prompt"] == [{"role": "user", "text": "6 * 7?", "image": ""}]


def test_no_rows_make_an_empty_table() -> None:
    assert record_batch([], None, None).num_rows == 0


async def test_an_object_store_works_as_a_folder_does() -> None:
    url = "memory://bucket/run"
    driver = await Driver.take_over(MemoryBuffer(), ManualClock())
    groups = [new_group(draw) for draw in range(3)]
    await driver.complete(*groups)
    await driver.buffer.record_batch(driver.fence, batch(*groups))
    await driver.buffer.commit(driver.fence, 0, 1, "m1")
    archiver = Archiver(driver.buffer, ArchiveStore(url), RunFacts("run"))
    await archiver.take_over()
    assert await archiver.sweep() == 3
    assert await archiver.sweep() == 0
    archive = Archive.open(url)
    assert [group.group_id for group in archive.groups(["prompt_id"])] == [group.group_id for group in groups]
    assert archive.lineage.commit == (0, 1)
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s3x://a"])
def test_a_url_that_nothing_serves_is_bad_input(url: str) -> None:
    with pytest.raises(ConfigError, match="can't be opened"):
        ArchiveStore(url)


async def test_nothing_is_archived_before_the_first_commit(tmp_path: Path) -> None:
    driver = await Driver.take_over(MemoryBuffer(), ManualClock())
    await driver.complete(new_group())
    await driver.buffer.record_batch(driver.fence, batch(new_group()))
    archiver = Archiver(driver.buffer, ArchiveStore(str(tmp_path)), RunFacts("run"))
    await archiver.take_over()
    assert await archiver.sweep() == 0
    assert ArchiveStore(str(tmp_path)).manifests() == []


def test_the_surviving_line_follows_the_newest_branch() -> None:
    lineage = Lineage(branches={1: (0, 10), 2: (1, 15), 3: (1, 12)})
    assert lineage.line() == {3: None, 1: 12, 0: 10}
    assert lineage.survives(3, 99)
    assert lineage.survives(1, 12)
    assert not lineage.survives(1, 13)
    assert not lineage.survives(2, 14)
    assert not lineage.survives(0, 11)
    nearer = Lineage(branches={1: (0, 10), 2: (1, 5)})
    assert nearer.line() == {2: None, 1: 5, 0: 5}, "what came after the older commit is gone too"


async def test_the_lineage_book_reads_versions_as_they_are_published() -> None:
    buffer, book = MemoryBuffer(), LineageBook()
    fence = await buffer.acquire_epoch()
    assert not await book.update(buffer, None)
    first = await buffer.next_version(fence, parent=0, branch=0, iteration=0)
    second = await buffer.next_version(fence, parent=first, branch=0, iteration=1)
    assert await book.update(buffer, (0, 1))
    assert not await book.update(buffer, (0, 1))
    await buffer.register_weights(fence, common_pb2.WeightManifest(version=second, parent=first))
    assert await book.update(buffer, (0, 1))
    assert [one.published for one in book.lineage.versions] == [False, True]
    assert Lineage.from_dict(book.to_dict("run")) == book.lineage
