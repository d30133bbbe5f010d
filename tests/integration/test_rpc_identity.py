"""mTLS between services: certificates of the operator's authority, and who may call whom."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crescendo.common.errors import CrescendoError, EnvironmentProblem
from crescendo.common.rpc import Client, Endpoint, Server, serve
from crescendo.common.rpc.guards import may_call
from crescendo.common.rpc.identity import SERVER_NAME, VARIABLE, Identity
from crescendo.controller.operator.certificates import KeyPair, due, new_authority, new_leaf
from crescendo.controller.service import SERVICE_NAME
from crescendo.proto.v1 import controller_pb2, controller_pb2_grpc
from tests.integration.identities import identity_folder

NOW = datetime.now(UTC)
OWN = Identity("team", "uid-1", "controller")


class Answering(controller_pb2_grpc.ControllerServiceServicer):
    async def GetStatus(self, request: object, context: object) -> controller_pb2.GetRunStatusResponse:
        return controller_pb2.GetRunStatusResponse(status=controller_pb2.RunStatus(run_id="r"))


@pytest.fixture
def authority() -> KeyPair:
    return new_authority(NOW)


@pytest.fixture
async def server(tmp_path: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv(VARIABLE, str(identity_folder(tmp_path / "server", OWN, authority)))
    started = await serve(
        lambda server: controller_pb2_grpc.add_ControllerServiceServicer_to_server(Answering(), server),
        [SERVICE_NAME],
        roles=frozenset({"operator", "controller"}),
    )
    yield started
    await started.stop(0.1)


def renew(folder: Path, identity: Identity, authority: KeyPair) -> None:
    """Writes the folder anew, as the kubelet does after the operator."""
    fresh = identity_folder(folder.with_name(f"{folder.name}-{uuid.uuid4().hex}"), identity, authority)
    for path in fresh.iterdir():
        path.replace(folder / path.name)


async def ask(server: Server) -> str:
    client = Client(Endpoint(server.address), controller_pb2_grpc.ControllerServiceStub)
    try:
        answer = await client.call(client.stub.GetStatus, controller_pb2.GetRunStatusRequest(), timeout_s=5)
    finally:
        await client.close()
    return str(answer.status.run_id)


async def call_as(
    identity: Identity, server: Server, root: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv(VARIABLE, str(identity_folder(root / "client", identity, authority)))
    return await ask(server)


@pytest.mark.parametrize("caller", [Identity("platform", "platform", "operator"), OWN])
async def test_the_platform_and_the_job_itself_may_call(
    caller: Identity, server: Server, tmp_path: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await call_as(caller, server, tmp_path, authority, monkeypatch) == "r"


@pytest.mark.parametrize(
    "caller",
    [
        Identity("team", "uid-2", "controller"),
        Identity("else", "uid-1", "controller"),
        Identity("team", "uid-1", "buffer"),
    ],
)
async def test_another_job_or_another_role_is_refused(
    caller: Identity, server: Server, tmp_path: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CrescendoError, match="may not call"):
        await call_as(caller, server, tmp_path, authority, monkeypatch)


async def test_a_certificate_of_another_authority_does_not_connect(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CrescendoError):
        await call_as(OWN, server, tmp_path, new_authority(NOW), monkeypatch)


async def test_a_caller_without_a_certificate_does_not_connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(CrescendoError):
        await ask(server)


async def test_health_answers_any_holder_of_a_certificate(
    server: Server, tmp_path: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Identity("other", "uid-9", "buffer")
    monkeypatch.setenv(VARIABLE, str(identity_folder(tmp_path / "probe", stranger, authority)))
    client = Client(Endpoint(server.address), health_pb2_grpc.HealthStub)
    answer = await client.call(client.stub.Check, health_pb2.HealthCheckRequest(), timeout_s=5)
    await client.close()
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_renewed_certificates_are_taken_up_by_servers_and_clients_that_run(
    server: Server, tmp_path: Path, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = identity_folder(tmp_path / "client", OWN, authority)
    monkeypatch.setenv(VARIABLE, str(folder))
    client = Client(Endpoint(server.address), controller_pb2_grpc.ControllerServiceStub)

    async def call() -> str:
        request = controller_pb2.GetRunStatusRequest()
        return str((await client.call(client.stub.GetStatus, request, timeout_s=5)).status.run_id)

    try:
        assert await call() == "r"
        renew(folder, Identity("team", "uid-2", "controller"), authority)
        with pytest.raises(CrescendoError, match="may not call"):
            await call()
        other = new_authority(NOW)
        renew(folder, OWN, other)
        with pytest.raises(CrescendoError):  # the server's side is still the earlier authority's
            await call()
        renew(tmp_path / "server", OWN, other)
        renew(folder, OWN, other)
        assert await call() == "r"
    finally:
        await client.close()


async def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"tls\.key cannot be read"):
        await serve(lambda server: None, [])


def test_a_leaf_is_renewed_after_two_thirds_of_its_time(authority: KeyPair) -> None:
    leaf = new_leaf(authority, OWN.uri, [SERVER_NAME], NOW, days=9)
    assert not due(leaf.certificate, authority.certificate, NOW + timedelta(days=5))
    assert due(leaf.certificate, authority.certificate, NOW + timedelta(days=7))
    assert due(leaf.certificate, new_authority(NOW).certificate, NOW)
    assert due(b"damaged", authority.certificate, NOW)


def test_the_platform_serves_every_job_and_a_job_only_itself() -> None:
    reward = Identity("crescendo-system", "platform", "reward")
    roles = frozenset({"controller"})
    assert may_call(reward, OWN, roles)
    assert not may_call(reward, Identity("team", "uid-1", "buffer"), roles)
    assert not may_call(OWN, Identity("team", "uid-2", "controller"), roles)
