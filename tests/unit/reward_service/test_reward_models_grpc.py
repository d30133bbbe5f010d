"""Remote reward models over gRPC, in the clear and with TLS."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from crescendo.common.rpc import serve
from crescendo.proto.v1 import reward_model_pb2, reward_model_pb2_grpc
from crescendo.reward_service.reward_models import ModelScoring, RewardModels, models
from tests.unit.reward_service.reward_model_rig import Local, config, item, link, score_one


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FIRST_WAIT_S", 0.01)


class Servicer(reward_model_pb2_grpc.RewardModelServiceServicer):
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[reward_model_pb2.EvaluateRequest] = []

    async def Evaluate(
        self, request: reward_model_pb2.EvaluateRequest, context: grpc.aio.ServicerContext
    ) -> reward_model_pb2.EvaluateResponse:
        self.asked.append(request)
        if isinstance(self.answer, grpc.StatusCode):
            await context.abort(self.answer, "scripted")
        if isinstance(self.answer, float):
            return reward_model_pb2.EvaluateResponse(score=self.answer)
        text = str(self.answer).replace("NONCE", request.request_id)
        return reward_model_pb2.EvaluateResponse(text=text.encode())


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        (0.25, "score", 0.25),
        (7.0, "score", 1.0),
        ('{"nonce": "NONCE", "correct": true}', "verdict", 1.0),
        ('{"nonce": "NONCE", "score": 0.5}', "score", 0.5),
        (float("nan"), "score", "finite"),
        (0.25, "verdict", "a verdict was asked for"),
        ("no verdict", "verdict", "cannot be read"),
        (grpc.StatusCode.UNAVAILABLE, "verdict", "scripted"),
        (grpc.StatusCode.PERMISSION_DENIED, "verdict", "scripted"),
    ],
)
async def test_over_grpc(answer: object, answers: str, expected: float | str) -> None:
    servicer = Servicer(answer)
    server = await serve(
        lambda grpc_server: reward_model_pb2_grpc.add_RewardModelServiceServicer_to_server(servicer, grpc_server),
        ["crescendo.v1.RewardModelService"],
    )
    remote = RewardModels.open({"judge": config(server.address, protocol="grpc", answers=answers, attempts=2)})
    try:
        result = await score_one(
            ModelScoring(Local(), remote), item("t1", b"<think>a</think>\xffb", link(span="summary"))
        )
    finally:
        await remote.close()
        await server.stop(0.0)
    assert servicer.asked[0].response == b"\xffb"
    assert servicer.asked[0].reference_answers == ["7"]
    if isinstance(expected, float):
        assert result.components[0].raw == expected
    else:
        assert expected in result.fault.message


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "judge")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    pem, secret = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, secret


async def test_over_grpc_with_tls(certificate: tuple[Path, Path]) -> None:
    pem, secret = certificate
    server = grpc.aio.server()
    reward_model_pb2_grpc.add_RewardModelServiceServicer_to_server(Servicer(0.5), server)
    credentials = grpc.ssl_server_credentials([(secret.read_bytes(), pem.read_bytes())])
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    given = {"protocol": "grpc", "answers": "score", "attempts": 1}
    remote = RewardModels.open({"judge": config(address, ca_file=str(pem), **given), "clear": config(address, **given)})
    try:
        scoring = ModelScoring(Local(), remote)
        assert (await score_one(scoring, item())).components[0].raw == 0.5
        assert (await score_one(scoring, item("t2", "x", link("clear")))).HasField("fault")
    finally:
        await remote.close()
        await server.stop(0.0)
