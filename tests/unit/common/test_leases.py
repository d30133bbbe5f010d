"""The lease's state machine: properties over all its walks, proofs and choices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import InternalError
from crescendo.common.leases import (
    METHODS,
    NEXT,
    Holder,
    LeaseMachine,
    LeaseState,
    Methods,
    Proof,
    Reading,
    Share,
    Verdict,
)

GIB = 2**30
states = st.sampled_from(list(LeaseState))


@given(st.lists(states, max_size=30))
def test_only_the_cycle_is_walked_and_time_is_accounted_for(wanted: list[LeaseState]) -> None:
    machine, now = LeaseMachine(0.0), 0.0
    for to in wanted:
        now += 1.5
        before = machine.state
        if NEXT[before] is to:
            voids = machine.move(to, now)
            assert voids == (to in (LeaseState.TRAIN, LeaseState.OFFLOADING, LeaseState.ROLLOUT))
        else:
            with pytest.raises(InternalError, match="cannot move"):
                machine.move(to, now)
            assert machine.state is before
    assert sum(machine.seconds.values()) + now - machine.since_s == pytest.approx(now)


@given(states)
def test_never_are_both_sides_whole(state: LeaseState) -> None:
    machine = LeaseMachine(0.0, state)
    assert not all(machine.may(holder, Share.ALL) for holder in Holder)
    assert any(machine.may(holder, Share.WEIGHTS) for holder in Holder)
    for holder in Holder:
        assert machine.may(holder, Share.NOTHING)
        if machine.may(holder, Share.ALL):
            assert machine.may(holder, Share.WEIGHTS)
        else:
            with pytest.raises(InternalError, match="may not take"):
                machine.require(holder, Share.ALL)


@given(st.integers(0, 200), st.lists(st.integers(0, 200), min_size=1, max_size=20), st.floats(0.1, 30))
def test_memory_is_proven_by_the_first_reading_that_suffices(need: int, frees: list[int], limit_s: float) -> None:
    proof = Proof(need * GIB, limit_s)
    for at, free in enumerate(frees):
        verdict = proof.observe(Reading(float(at), 0.0, free * GIB, 200 * GIB))
        assert (verdict is Verdict.PROVEN) == (free >= need)
        if verdict is not Verdict.PROVEN:
            assert (verdict is Verdict.FAILED) == (at >= limit_s)
        else:
            break


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_cores_are_proven_free_only_by_time_that_stands_still(shares: list[float]) -> None:
    """shares: of a core, that the former holder uses in each second."""
    proof, used = Proof(0, 1e9), 0.0
    assert proof.observe(Reading(0.0, used)) is Verdict.WAIT, "one reading proves nothing"
    for at, share in enumerate(shares, 1):
        used += share
        verdict = proof.observe(Reading(float(at), used))
        if abs(share - 0.51) > 1e-6:
            assert (verdict is Verdict.PROVEN) == (share < 0.51)


def test_a_proof_that_fails_says_what_is_short() -> None:
    proof, reading = Proof(20 * GIB, 1.0), Reading(2.0, 0.0, 8 * GIB, 80 * GIB)
    assert proof.observe(reading) is Verdict.FAILED
    assert proof.shortfall(reading) == "8.00 GiB are free, and 20.00 are needed"
    assert proof.shortfall(Reading(2.0, 1.0)) == "it still computes"


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_stronger_methods_follow_until_there_is_none(key: tuple[Holder, str], data: st.DataObject) -> None:
    methods = Methods(*key)
    way: str | None = data.draw(st.sampled_from(methods.ways))
    seen = []
    while way is not None:
        seen.append(way)
        way = methods.stronger(way)
    assert seen == list(methods.ways[-len(seen) :])


def test_the_cheapest_method_whose_leftover_fits_is_chosen() -> None:
    methods = Methods(Holder.ENGINES, "gpu")
    assert methods.choose(80 * GIB, 60 * GIB) == "sleep", "nothing is measured yet"
    methods.learn("sleep", Reading(1.0, 0.0, 50 * GIB, 80 * GIB))
    assert methods.choose(80 * GIB, 60 * GIB) == "restart"
    assert methods.choose(80 * GIB, 40 * GIB) == "sleep"
    methods.learn("restart", Reading(2.0, 0.0, 55 * GIB, 80 * GIB))
    assert methods.choose(80 * GIB, 60 * GIB) == "restart", "the strongest, when none leaves enough"
    assert Methods(Holder.ENGINES, "cpu").choose(0, 0) == "idle"
