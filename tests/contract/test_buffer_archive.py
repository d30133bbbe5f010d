"""Trimming what an archive holds, on every implementation of ExperienceBuffer."""

import pytest

from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.common.types import GroupId, GroupState
from tests.contract.buffer_cases import Driver, batch, ids_of, new_group

FILE = "data/b000-i000001-t000001-n000001.parquet"


async def consume(driver: Driver, *iterations: int, branch: int = 0) -> list[GroupId]:
    groups = [new_group(0, iteration=iteration, branch=branch) for iteration in iterations]
    for group in groups:
        await driver.complete(group)
        await driver.buffer.record_batch(driver.fence, batch(group, iteration=group.iteration, branch=branch))
    return [group.group_id for group in groups]


async def test_a_trimmed_group_keeps_its_place_in_the_ledger_and_names_its_file(driver: Driver) -> None:
    (group,) = await consume(driver, 1)
    await driver.buffer.commit(driver.fence, 0, 1, "m1")
    before = await driver.buffer.counts()
    archiver = await driver.buffer.acquire_archiver()
    assert await driver.buffer.trim(archiver, {group: FILE}) == 1
    assert await driver.buffer.trim(archiver, {group: "another.parquet"}) == 0, "the first pointer stays"
    (loaded,) = await driver.buffer.load_groups([group])
    assert (loaded.state, loaded.archived, loaded.trajectories) == (GroupState.CONSUMED, FILE, ())
    assert await driver.buffer.counts() == before
    assert await driver.buffer.groups(GroupState.CONSUMED) == []
    with pytest.raises(RequestError, match="archived"):
        await driver.buffer.load_trajectories(ids_of(new_group()))
    with pytest.raises(RequestError, match="archived"):
        await driver.buffer.load_prompts([group])
    assert await driver.open(new_group()) == 0, "the id is taken for ever"


async def test_nothing_above_the_commit_is_trimmed(driver: Driver) -> None:
    first, second = await consume(driver, 1, 2)
    archiver = await driver.buffer.acquire_archiver()
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {first: FILE})
    await driver.buffer.commit(driver.fence, 0, 1, "m1")
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {first: FILE, second: FILE})
    assert await driver.buffer.groups(GroupState.CONSUMED) == [first, second], "all or nothing"
    assert len(await driver.buffer.load_trajectories(ids_of(new_group(0, iteration=2)))) == 2
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {GroupId("b0-i000009-d0009"): FILE})


async def test_abandoned_groups_stay_until_the_new_branch_commits(driver: Driver) -> None:
    first, second, third = await consume(driver, 1, 2, 3)
    await driver.buffer.commit(driver.fence, 0, 2, "m2")
    archiver = await driver.buffer.acquire_archiver()
    assert await driver.buffer.trim(archiver, {first: FILE}) == 1
    assert await driver.buffer.branches() == {}
    assert await driver.buffer.open_branch(driver.fence, parent=0, from_iteration=0, drop_partials=True) == 1
    assert await driver.buffer.branches() == {1: (0, 0)}
    assert set(await driver.buffer.groups(GroupState.ABANDONED)) >= {second, third}
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {third: FILE})
    await driver.buffer.commit(driver.fence, 1, 4, "m4")
    assert await driver.buffer.trim(archiver, {first: FILE, second: FILE, third: FILE}) == 2
    assert await driver.buffer.groups(GroupState.ABANDONED) == []
    assert await driver.group_state(first) == "abandoned"


async def test_dropped_and_open_groups(driver: Driver) -> None:
    dropped, still_open = new_group(0), new_group(1)
    await driver.open(dropped)
    await driver.buffer.drop_group(driver.fence, dropped.group_id, "bad prompt")
    archiver = await driver.buffer.acquire_archiver()
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {dropped.group_id: FILE})
    await consume(driver, 2)
    await driver.open(still_open)
    await driver.buffer.commit(driver.fence, 0, 2, "m2")
    assert await driver.buffer.trim(archiver, {dropped.group_id: FILE}) == 1
    with pytest.raises(RequestError):
        await driver.buffer.trim(archiver, {still_open.group_id: FILE})


async def test_an_older_archiver_is_refused(driver: Driver) -> None:
    (group,) = await consume(driver, 1)
    await driver.buffer.commit(driver.fence, 0, 1, "m1")
    old = await driver.buffer.acquire_archiver()
    new = await driver.buffer.acquire_archiver()
    assert new > old
    with pytest.raises(StaleFenceError):
        await driver.buffer.trim(old, {group: FILE})
    assert await driver.buffer.trim(new, {group: FILE}) == 1
