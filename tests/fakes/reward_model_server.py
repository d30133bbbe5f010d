"""A reward model's server for tests: HTTP as OpenAI's and vLLM's speak it, answering as each test scripts it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

NONCE = re.compile(r"\[response ([0-9a-f]+)\]")


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: Any

    @property
    def nonce(self) -> str:
        """The nonce that the verdict must carry."""
        found = NONCE.search(self.body["messages"][-1]["content"])
        return found[1] if found else ""

    @property
    def text(self) -> str:
        """What the model reads last."""
        return str(self.body["messages"][-1]["content"])


@dataclass(frozen=True)
class Reply:
    """One answer. stall_s: waits before it; trickle_s: sends one byte after each such pause."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0
    trickle_s: float = 0.0


Script = Callable[[Asked], Reply | Awaitable[Reply]]


def chat(content: Any, finish_reason: str = "stop") -> Reply:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return Reply(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


def verdict(asked: Asked, correct: bool) -> Reply:
    """A verdict as the model was asked for it."""
    return chat(f"Let me see. It holds.\n{json.dumps({'nonce': asked.nonce, 'correct': correct})}")


def pooling(*values: Any) -> Reply:
    """vLLM's answer to /pooling."""
    return Reply(json.dumps({"object": "list", "data": [{"index": 0, "data": list(values)}]}).encode())


class RewardModelServer:
    """`async with RewardModelServer(script) as server`: server.url, server.asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """http://host:port."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "RewardModelServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            asked = await _read(reader)
            self.asked.append(asked)
            reply = self.script(asked)
            await _send(writer, reply if isinstance(reply, Reply) else await reply)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client had enough
        finally:
            self._at_once -= 1
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(head[0].split(" ")[1], headers, json.loads(body))


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    await asyncio.sleep(reply.stall_s)
    headers = {"content-length": str(len(reply.body)), "connection": "close", **reply.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} Scripted\r\n{lines}\r\n".encode("latin-1"))
    pieces = [reply.body[i : i + 1] for i in range(len(reply.body))] if reply.trickle_s else [reply.body]
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(reply.trickle_s)
