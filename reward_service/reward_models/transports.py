"""How a question reaches a reward model: the protocol, and the choice of one.

A transport asks once. It raises a CrescendoError, retryable where asking again may help; retries, limits and the
cache are models.py's.
"""

import ssl
from dataclasses import dataclass
from typing import Protocol

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.errors import ConfigError
from crescendo.reward_service.reward_models.question import Question

MAX_KEY_BYTES = 1 << 16
MAX_BODY_BYTES = 4 << 20


@dataclass(frozen=True)
class RawAnswer:
    """What came back. score: where the protocol carries a number; else body, unread, and what it is (`body_kind`)."""

    score: float | None = None
    body: bytes = b""
    body_kind: str = "text"


class Transport(Protocol):
    """One way of asking."""

    async def ask(self, question: Question, nonce: str) -> RawAnswer:
        """Asks once; raises a CrescendoError."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


def open_transport(name: str, model: RewardModelConfig) -> Transport:
    """The transport of a model; raises ConfigError on a key or certificate that cannot be read."""
    key = read_key(name, model.api_key_file)
    if model.protocol == "openai":
        from crescendo.reward_service.reward_models.over_http import HttpTransport

        return HttpTransport(name, model, key)
    if model.protocol == "grpc":
        from crescendo.reward_service.reward_models.over_grpc import GrpcTransport

        return GrpcTransport(name, model, key)
    raise ConfigError(
        f"rewards.models.{name}.protocol is {model.protocol!r}; there are openai and grpc.",
        field=f"rewards.models.{name}.protocol",
    )


def read_key(name: str, path: str) -> str:
    """The key in a file; empty without one. The key itself is never shown."""
    if not path:
        return ""
    field = f"rewards.models.{name}.api_key_file"
    try:
        with open(path, encoding="ascii") as file:
            key = file.read(MAX_KEY_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain ASCII"
        raise ConfigError(f"{field} is {path}, which cannot be read: {reason}.", field=field) from None
    if not key or not key.isprintable() or " " in key:
        raise ConfigError(f"{field} is {path}, which holds no key of one word.", field=field)
    return key


def read_certificates(name: str, path: str) -> bytes:
    """Certificates to trust, in PEM; raises ConfigError if the file holds none."""
    field = f"rewards.models.{name}.ca_file"
    try:
        with open(path, "rb") as file:
            found = file.read()
        ssl.create_default_context(cadata=found.decode("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field} is {path}, which holds no certificates: {error}.", field=field) from None
    return found
