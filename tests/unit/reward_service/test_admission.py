"""What the reward process takes on at once, and from whom."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import OverloadError
from crescendo.proto.v1 import reward_pb2
from crescendo.reward_service.admission import MAX_RETRY_S, MIN_RETRY_S, Admission, identity_of


class Call:
    def __init__(self, uri: bytes = b"", token: str | bytes = "") -> None:
        self._uri, self._token = uri, token

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"x509_subject_alternative_name": [b"crescendo.internal", self._uri]} if self._uri else {}

    def invocation_metadata(self) -> Any:
        return (("user-agent", "test"), ("authorization", self._token))


def items(count: int, num_bytes: int = 1) -> list[reward_pb2.ScoreItem]:
    return [reward_pb2.ScoreItem(response=b"x" * num_bytes)] * count


def test_a_certificate_goes_before_the_token() -> None:
    uri = b"crescendo://team/0f3a/controller"
    assert identity_of(Call(uri, "Bearer t")) == uri.decode()
    first, second = identity_of(Call(token="Bearer a")), identity_of(Call(b"spiffe://x", b"Bearer b"))
    assert first != second
    assert "Bearer" not in first
    assert identity_of(Call(token=b"Bearer a")) == first


def test_one_caller_cannot_take_it_all() -> None:
    admission = Admission(max_items=10, max_bytes=1000, identity_share=0.5)
    with admission.hold("a", items(5)):
        with pytest.raises(OverloadError, match="of this caller") as caught, admission.hold("a", items(1)):
            pass
        assert MIN_RETRY_S <= caught.value.retry_after_s <= MAX_RETRY_S
        with admission.hold("b", items(5)):
            assert admission.num_items == 10
            with pytest.raises(OverloadError, match="limit is 10"), admission.hold("c", items(1)):
                pass
    assert (admission.num_items, admission.num_bytes, admission.num_refused) == (0, 0, 2)


def test_bytes_count_too() -> None:
    admission = Admission(max_items=10, max_bytes=100, identity_share=0.5)
    with pytest.raises(OverloadError, match="bytes of items of this caller"), admission.hold("a", items(1, 51)):
        pass
    with admission.hold("a", items(1, 50)):
        assert admission.num_bytes == 50


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8)), max_size=30))
def test_nothing_stays_counted_whatever_fails(calls: list[tuple[str, int]]) -> None:
    admission = Admission(max_items=12, max_bytes=100, identity_share=0.75)
    for identity, count in calls:
        try:
            with admission.hold(identity, items(count)):
                assert 0 <= admission.num_items <= 12
                raise KeyError(identity)
        except (KeyError, OverloadError):
            continue
    assert (admission.num_items, admission.num_bytes) == (0, 0)
