"""Reward models behind HTTP, as OpenAI's and vLLM's servers speak it.

A verdict: POST /v1/chat/completions. A score: POST /pooling, vLLM's call for models with a value head. The answer's
body is passed on unread. Redirects are not followed and no proxy or password is taken from the environment: the
question goes where the run file says, and nowhere else.
"""

import asyncio
import json
import ssl
from typing import Any

import httpx

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.errors import (
    ConfigError,
    CrescendoError,
    DeadlineError,
    OverloadError,
    RequestError,
    WorkerLostError,
)
from crescendo.reward_service.reward_models.question import Question, instructions, message, text_of
from crescendo.reward_service.reward_models.transports import MAX_BODY_BYTES, RawAnswer, read_certificates

MAX_RETRY_AFTER_S = 60.0
_PATHS = {"verdict": "/v1/chat/completions", "score": "/pooling"}
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class HttpTransport:
    """One model's connections. Lives on the event loop that made it."""

    def __init__(self, name: str, model: RewardModelConfig, key: str) -> None:
        self._name = name
        self._model = model
        self._url = _address(name, model.url.rstrip("/") + (model.path or _PATHS[model.answers]))
        self._client = httpx.AsyncClient(
            # Unpacked nowhere: a small body must not become a large one.
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=model.timeout_s,
            limits=httpx.Limits(max_connections=model.max_concurrency),
            verify=_trust(name, model.ca_file),
            follow_redirects=False,
            trust_env=False,
        )

    async def ask(self, question: Question, nonce: str) -> RawAnswer:
        """The answer's body; raises DeadlineError, OverloadError, WorkerLostError, or RequestError on a refusal."""
        body = json.dumps(self._body(question, nonce)).encode()
        try:
            # httpx limits each read; a server that trickles would never exceed that.
            async with asyncio.timeout(self._model.timeout_s):
                return RawAnswer(
                    body=await self._post(body), body_kind="chat" if self._model.answers == "verdict" else "pooling"
                )
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineError(
                f"reward model {self._name} did not answer within {self._model.timeout_s:g} s.",
                field=f"rewards.models.{self._name}.timeout_s",
            ) from None
        except httpx.HTTPError as error:
            raise WorkerLostError(f"reward model {self._name} cannot be reached: {type(error).__name__}.") from None

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    async def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                raise self._refusal(answer)
            received = bytearray()
            async for piece in answer.aiter_raw():
                received += piece
                if len(received) > MAX_BODY_BYTES:
                    raise WorkerLostError(f"reward model {self._name} answered with more than {MAX_BODY_BYTES} bytes.")
            return bytes(received)

    def _refusal(self, answer: httpx.Response) -> CrescendoError:
        said = f"reward model {self._name} answered HTTP {answer.status_code}."
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return OverloadError(said, retry_after_s=_retry_after_s(answer))
        if answer.status_code in _TRY_AGAIN:
            return WorkerLostError(said, retry_after_s=_retry_after_s(answer))
        return RequestError(
            said,
            field=f"rewards.models.{self._name}",
            fix="Check url, path, model and api_key_file with the server's log.",
        )

    def _body(self, question: Question, nonce: str) -> dict[str, Any]:
        model = self._model
        if model.answers == "score":
            turns = [
                {"role": "user", "content": text_of(question.prompt)},
                {"role": "assistant", "content": text_of(question.response)},
            ]
            if question.reference_answers:
                # k1.5's classic reward model reads question, reference answer and response.
                turns[0]["content"] += "\n\nReference answer: " + " or ".join(question.reference_answers)
            return {"model": model.model, "messages": turns}
        return {
            "model": model.model,
            "messages": [
                {"role": "system", "content": instructions(model, nonce)},
                {"role": "user", "content": message(question, nonce)},
            ],
            "temperature": model.temperature,
            "max_tokens": model.max_tokens,
        }


def _address(name: str, url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(
            f"rewards.models.{name}.url is no address: {error}", field=f"rewards.models.{name}.url"
        ) from None
    if not address.host:
        raise ConfigError(f"rewards.models.{name}.url names no host.", field=f"rewards.models.{name}.url")
    return address


def _trust(name: str, ca_file: str) -> ssl.SSLContext:
    certificates = read_certificates(name, ca_file).decode("ascii") if ca_file else None
    return ssl.create_default_context(cadata=certificates)


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        seconds = float(answer.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return min(MAX_RETRY_AFTER_S, seconds) if seconds > 0 else 0.0
