"""Faults between operator and API server: what it answers, loses, cuts and delays changes nothing but the time."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.proxy import Fault, Proxy, Request
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(600)
Eventually = Callable[..., None]
KINDS = ("409", "410", "429", "500", "503", "lost 500", "in stream 410", "in stream 500", "cut", "slow")


class Faults:
    """Each kind in turn by chance, every one at least once."""

    def __init__(self) -> None:
        self._dice = random.Random(7)
        self._watches = 0

    def __call__(self, request: Request) -> Fault | None:
        if request.verb == "watch":
            self._watches += 1
            kinds = (Fault(status=410), Fault(in_stream=410), Fault(in_stream=500), Fault(status=429))
            # Every other watch works for a while, so that events come through between the faults.
            return kinds[self._watches // 2 % 4] if self._watches % 2 else Fault(cut_s=self._dice.uniform(1, 4))
        chance = self._dice.random()
        if chance < 0.08:
            return Fault(status=self._dice.choice([429, 500, 503]))
        if chance < 0.14 and request.writes:
            return Fault(status=409)
        if chance < 0.20 and request.writes:
            return Fault(status=500, after=True)
        return Fault(delay_s=self._dice.uniform(0.1, 0.6)) if chance < 0.3 else None


def test_faults_of_the_api_server_delay_but_change_nothing(
    control_plane: ControlPlane, proxy: Proxy, namespace: str, tmp_path: Path, eventually: Eventually
) -> None:
    proxy.decide = Faults()
    operator = Operator(control_plane.user("operator", server=proxy.url), tmp_path, [namespace])
    operator.start()
    try:
        volumes(control_plane, namespace)
        control_plane.apply(quickstart("math", namespace))
        job = JobView(control_plane, "math", namespace)
        eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
        job.patch(suspend=True)
        eventually("it is suspended", lambda: job.phase == "Suspended", 90)
        job.patch(suspend=False)
        eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 90)
        eventually("every kind of fault", lambda: set(KINDS) <= set(proxy.injected), 120)
        assert job.status().get("failures", 0) == 0
        assert not operator.ended()
    finally:
        operator.kill()
        print(dict(proxy.injected))
        print(operator.log[-6000:])


def test_an_api_server_that_is_away_for_a_while_is_waited_for(
    control_plane: ControlPlane, proxy: Proxy, namespace: str, tmp_path: Path, eventually: Eventually
) -> None:
    operator = Operator(control_plane.user("operator", server=proxy.url), tmp_path, [namespace])
    operator.start()
    try:
        volumes(control_plane, namespace)
        eventually("it watches", lambda: proxy.seen["watch", "rljobs"] > 0)
        proxy.decide = lambda _: Fault(status=503)
        control_plane.apply(quickstart("math", namespace))
        eventually("it has noticed", lambda: proxy.injected["503"] > 10)
        job = JobView(control_plane, "math", namespace)
        assert job.children("rayjob") == []
        proxy.decide = lambda _: None
        eventually("the first attempt", lambda: job.children("rayjob") == ["math-1"], 90)
        assert not operator.ended()
    finally:
        operator.kill()
        print(operator.log[-6000:])
