"""Requests that nobody would send: messages with random fields, messages with damaged bytes, and plain noise.

An answer is fine if it decodes, or if it is an error of common/errors.py that is no InternalError. Used by
bench_reward_soak.py (10,000 requests) and tests/integration/test_reward_soak.py (fewer).
"""

import asyncio
import math
import random
import socket
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from crescendo.common.errors import InternalError
from crescendo.common.rpc import to_error
from crescendo.common.rpc.channel import OPTIONS
from crescendo.proto.v1 import reward_pb2

CALL_S = 60.0
AT_ONCE = 32
MAX_REPEATED = 4
METHODS: dict[str, tuple[str, type[Message], type[Message]]] = {
    "Score": ("RewardService", reward_pb2.ScoreRequest, reward_pb2.ScoreResponse),
    "ScoreGroups": ("RewardService", reward_pb2.ScoreGroupsRequest, reward_pb2.ScoreGroupsResponse),
    "GetStatus": ("RewardService", reward_pb2.GetRewardStatusRequest, reward_pb2.GetRewardStatusResponse),
    "Execute": ("ExecutorService", reward_pb2.ExecuteRequest, reward_pb2.ExecuteResponse),
}
_NUMBERS = (0, 1, -1, 7, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 2**64 - 1)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf)
_WORDS = ("exact_match", "math_answer", "format", "length_k15", "marker", "extract", "tag", "answer", "#", "a", "")


@dataclass
class Fuzzed:
    """What the service said. errors: by class and code."""

    num_requests: int = 0
    num_answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    untyped: list[str] = field(default_factory=list)


def random_message(kind: type[Message], rng: random.Random) -> Message:
    """A message of which any field may be anything that its type allows."""
    message = kind()
    _fill(message, message.DESCRIPTOR, rng, depth=0)
    return message


def request_bytes(kind: type[Message], rng: random.Random) -> bytes:
    """A random message as it is, or with bytes flipped, cut out or put in, or noise."""
    data = bytearray(random_message(kind, rng).SerializeToString())
    choice = rng.random()
    if choice < 0.6:
        return bytes(data)
    if choice < 0.7 or not data:
        return rng.randbytes(rng.randint(0, 400))
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
    return bytes(data)


def _fill(message: Message, descriptor: Descriptor, rng: random.Random, depth: int) -> None:
    for one in descriptor.fields:
        if rng.random() < 0.25 or depth > 4:
            continue
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            target = getattr(message, one.name)
            for _ in range(rng.randint(0, 2)):
                target[_text(rng)] = _text(rng)
        elif one.is_repeated:
            target = getattr(message, one.name)
            for _ in range(rng.randint(0, MAX_REPEATED)):
                if one.message_type is not None:
                    _fill(target.add(), one.message_type, rng, depth + 1)
                else:
                    target.append(_scalar(one, rng))
        elif one.message_type is not None:
            _fill(getattr(message, one.name), one.message_type, rng, depth + 1)
        else:
            setattr(message, one.name, _scalar(one, rng))


def _scalar(one: FieldDescriptor, rng: random.Random) -> Any:
    if one.type == FieldDescriptor.TYPE_STRING:
        return _text(rng)
    if one.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"#1", rb"\boxed{1}", rng.randbytes(rng.randint(0, 200)), b"\xff" * 2000))
    if one.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if one.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        # Mostly a deadline that a test can wait for.
        return rng.choice(_FLOATS) if rng.random() < 0.4 else rng.uniform(0.01, 2.0)
    if one.type == FieldDescriptor.TYPE_ENUM:
        return rng.randint(0, 12)
    low, high = {
        FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    }.get(one.type, (-(2**63), 2**63 - 1))
    return min(high, max(low, rng.choice(_NUMBERS)))


def _text(rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.7:
        return rng.choice(_WORDS)
    if choice < 0.95:
        return "".join(rng.choices(string.printable + "\0é世\U0001f600", k=rng.randint(0, 30)))
    return rng.choice("ab\n") * rng.randint(1_000, 20_000)


async def fuzz(reward: str, executor: str, token: str, count: int, seed: int) -> Fuzzed:
    """Sends `count` requests to the two services, some of them at once."""
    rng = random.Random(seed)
    fuzzed = Fuzzed()
    channels = {
        "RewardService": grpc.aio.insecure_channel(reward, options=OPTIONS),
        "ExecutorService": grpc.aio.insecure_channel(executor, options=OPTIONS),
    }
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, data: bytes) -> None:
        service, _, response = METHODS[name]
        call = channels[service].unary_unary(f"/crescendo.v1.{service}/{name}")
        async with gate:
            try:
                answer = await call(data, timeout=CALL_S, metadata=(("authorization", f"Bearer {token}"),))
                response.FromString(answer)
                fuzzed.num_answered += 1
            except grpc.aio.AioRpcError as failure:
                error = to_error(failure)
                fuzzed.errors[f"{type(error).__name__} {failure.code().name}"] += 1
                if isinstance(error, InternalError) or not failure.trailing_metadata():
                    fuzzed.untyped.append(f"{name}: {failure.code().name} {str(failure.details())[:200]}")

    names = rng.choices(list(METHODS), weights=(5, 3, 1, 3), k=count)
    await asyncio.gather(*(one(name, request_bytes(METHODS[name][1], rng)) for name in names))
    fuzzed.num_requests = count
    for channel in channels.values():
        await channel.close()
    return fuzzed


def noise(addresses: Sequence[str], count: int, seed: int) -> None:
    """Bytes that are not even HTTP/2, to each address; what the other side says is not read."""
    rng = random.Random(seed)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for number in range(count):
        for address in addresses:
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=5.0) as wire:
                wire.sendall((preface if number % 2 else b"") + rng.randbytes(rng.randint(1, 4_000)))
