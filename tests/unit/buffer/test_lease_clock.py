"""The lease clock: what counts as time."""

from crescendo.buffer.lease_clock import MAX_STEP_S, LeaseClock


class Hand:
    """A monotonic clock moved by hand."""

    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_it_counts_from_the_buffers_value() -> None:
    hand = Hand()
    clock = LeaseClock(hand)
    assert clock.now_ms() == 0, "the buffer has to be asked first"
    clock.set(7000)
    hand.now_s += 1.5
    assert clock.now_ms() == 8500


def test_an_outage_and_a_long_silence_do_not_count() -> None:
    hand = Hand()
    clock = LeaseClock(hand)
    clock.set(7000)
    hand.now_s += 3600
    assert clock.now_ms() == 7000 + int(1000 * MAX_STEP_S)
    clock.forget()
    assert clock.now_ms() == 0


def test_it_never_goes_back() -> None:
    hand = Hand()
    clock = LeaseClock(hand)
    clock.set(7000)
    hand.now_s -= 10
    assert clock.now_ms() == 7000
